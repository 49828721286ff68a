"""The checks on a prepared data set: one streaming pass that hands out only row groups in which nothing is wrong.

`open_dataset` runs it with a strict `Report`, where the first problem is an exception; the validator runs the same
pass with a collecting one. Every message names file, row group, row, column, value and what is expected.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from kunlun_jax.data.parquet.files import Layout
from kunlun_jax.data.parquet.learned import Learned
from kunlun_jax.data.parquet.report import Report
from kunlun_jax.data.parquet.row_group import row_groups
from kunlun_jax.data.schema import EventType


@dataclasses.dataclass(frozen=True)
class EventGroup:
    """A checked row group of events."""

    history_key: np.ndarray  # int64 [rows]
    time_ms: np.ndarray  # int64 [rows]
    ids: np.ndarray  # int64 [rows, fields]
    dense: np.ndarray  # float32 [rows, fields]


@dataclasses.dataclass(frozen=True)
class ExampleGroup:
    """A checked row group of examples."""

    file: Path
    categorical: np.ndarray  # int64 [rows, features]
    multi_valued: dict[str, tuple[np.ndarray, np.ndarray]]  # int64 values [items] and lengths [rows]
    dense: np.ndarray  # float32 [rows, features]
    labels: np.ndarray  # float32 [rows, tasks], NaN where there is none
    weights: np.ndarray  # float32 [rows]
    request_time_ms: np.ndarray  # int64 [rows]
    history_time_ms: np.ndarray  # int64 [rows]
    history_key: np.ndarray  # int64 [rows]; zeros where the schema has no events
    keys: dict[str, pa.Array]  # int64 or string


def event_groups(
    layout: Layout, event: EventType, report: Report, learned: Learned | None = None
) -> Iterator[EventGroup]:
    """Valid row groups of one event type, in order; problems of the others go to `report`."""
    wanted = [("history_key", "int"), ("time_ms", "time")]
    wanted += [(f.name, "value" if f.vocabulary else "id") for f in event.categorical]
    wanted += [(name, "float") for name in event.dense]
    previous: tuple[int, int] | None = None
    for file in layout.events[event.name]:
        for group in row_groups(layout, file, wanted, report, event=event, learned=learned):
            key, time = group.integers("history_key"), group.times("time_ms")
            if group.usable("history_key", "time_ms"):
                group.refuse_unsorted(key, time, previous)
                previous = (int(key[-1]), int(time[-1]))
            columns = group.stacked(group.ids, event.categorical, np.int64)
            dense = group.dense(event.dense)
            if group.good:
                yield EventGroup(key, time, columns, dense)


def example_groups(
    layout: Layout, split: str, report: Report, learned: Learned | None = None
) -> Iterator[ExampleGroup]:
    """Valid row groups of one split, in order; problems of the others go to `report`."""
    schema = layout.schema
    wanted = [("request_time_ms", "time")] + [("history_key", "int")] * bool(schema.events)
    wanted += [(f.name, "value" if f.vocabulary else "id") for f in schema.categorical]
    wanted += [(f.name, "values" if f.vocabulary else "list") for f in schema.multi_valued]
    wanted += [(name, "float") for name in schema.dense] + [(name, "label") for name in schema.tasks]
    wanted += [(name, "key") for name in schema.keys]
    optional = [("weight", "float"), ("history_time_ms", "time")]
    previous = None
    for file in layout.examples[split]:
        for group in row_groups(layout, file, wanted, report, optional=optional, learned=learned):
            request = group.times("request_time_ms")
            if group.usable("request_time_ms"):
                group.refuse_backwards(request, previous)
                previous = int(request[-1])
            history_time = request
            if group.has("history_time_ms"):
                history_time = group.times("history_time_ms")
                if group.usable("request_time_ms", "history_time_ms"):
                    group.refuse_future(history_time, request)
            history_key = group.integers("history_key") if schema.events else np.zeros(group.rows, np.int64)
            weights = group.weights("weight") if group.has("weight") else np.ones(group.rows, np.float32)
            categorical = group.stacked(group.ids, schema.categorical, np.int64)
            multi_valued = {f.name: group.id_lists(f) for f in schema.multi_valued}
            dense = group.dense(schema.dense)
            labels = group.stacked(group.labels, schema.tasks, np.float32)
            keys = {name: group.keys(name) for name in schema.keys}
            if group.good:
                yield ExampleGroup(
                    file=file,
                    categorical=categorical,
                    multi_valued=multi_valued,
                    dense=dense,
                    labels=labels,
                    weights=weights,
                    request_time_ms=request,
                    history_time_ms=history_time,
                    history_key=history_key,
                    keys=keys,
                )
