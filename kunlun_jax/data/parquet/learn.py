"""The pass over the training rows before all others, if a schema has vocabularies or marks nulls of dense columns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kunlun_jax.data.parquet.files import Layout
from kunlun_jax.data.parquet.learned import Learned
from kunlun_jax.data.parquet.mean import UsualMean
from kunlun_jax.data.parquet.report import Report
from kunlun_jax.data.parquet.row_group import Wanted, row_groups
from kunlun_jax.data.parquet.vocabulary import Counter, Vocabulary
from kunlun_jax.data.schema import Categorical, EventType


def learn(layout: Layout, progress: Callable[[int], Any]) -> Learned:
    """Counts values and averages dense columns of the training rows; what is wrong with them is found by the checks.

    Args:
      layout: of a data set.
      progress: told how many rows were read.
    """
    return _Pass(layout, progress).run()


class _Pass:
    def __init__(self, layout: Layout, progress: Callable[[int], Any]):
        self.layout, self.schema, self.progress = layout, layout.schema, progress
        self.marked = {column for column, policy in self.schema.nulls if policy == "indicator"}
        tables = self.schema.tables
        self.counters = {name: Counter() for name, table in tables.items() if table.vocabulary}
        self.means = {column: UsualMean() for column in self.marked}
        self.last = -1

    def run(self) -> Learned:
        if self.counters or self.marked:
            features = self.schema.categorical + self.schema.multi_valued
            self._read(self.layout.examples["train"], features, self.schema.dense, None)
            for event in self.schema.events:
                self._read(self.layout.events[event.name], event.categorical, event.dense, event)
        vocabularies = {
            name: Vocabulary.of(counter, self.schema.tables[name]) for name, counter in self.counters.items()
        }
        return Learned(vocabularies, {name: mean.mean() for name, mean in self.means.items()})

    def _read(
        self, files: list[Path], features: tuple[Categorical, ...], dense: tuple[str, ...], event: EventType | None
    ) -> None:
        prefix = f"{event.name}." if event else ""
        features = tuple(feature for feature in features if feature.vocabulary)
        dense = tuple(name for name in dense if prefix + name in self.marked)
        lists = {feature.name for feature in self.schema.multi_valued} if event is None else set()
        time = "time_ms" if event else "request_time_ms"
        wanted: Wanted = [(time, "time")] + [(f.name, "values" if f.name in lists else "value") for f in features]
        wanted += [(name, "float") for name in dense]
        if not features and not dense and event:
            return
        for file in files:
            for group in row_groups(self.layout, file, wanted, Report(strict=False), event=event):
                times = group.times(time)
                if event is None:
                    self.last = max(self.last, int(times.max()))
                seen = times <= self.last if event is None else times < self.last
                for feature in features:
                    if group.usable(feature.name):
                        self.counters[feature.table_name].add(group.values(feature.name, seen))
                for name in dense:
                    self.means[prefix + name].add(group.floats(name)[seen])
                self.progress(group.rows)
