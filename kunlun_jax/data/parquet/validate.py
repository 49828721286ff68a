"""Checks a prepared data set and says what is in it: ``python -m kunlun_jax.data.parquet.validate PATH``.

Prints the first problem of each kind per file and column, with how often it occurs, and exits 1; or prints a summary
and exits 0. It is the pass that `open_dataset` makes, so a data set that is valid here is already converted when
training opens it with the same cache.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from kunlun_jax.data.dataset import Dataset
from kunlun_jax.data.parquet.learned import read_learned
from kunlun_jax.data.parquet.report import Problem, Report
from kunlun_jax.data.parquet.source import ParquetSource, open_checked
from kunlun_jax.data.parquet.times import text_of
from kunlun_jax.data.schema import Categorical

_CHUNK = 1 << 20  # rows read at a time
_NONE = ["-", "-"]
_QUANTILES = {"median": 0.5, "90%": 0.9, "99%": 0.99, "max": 1.0}


def validate(root: Path, cache: Path | None = None) -> tuple[list[Problem], Dataset | None]:
    """All problems of the data set in `root`, or the data set if there are none.

    Args:
      root: folder with ``schema.json``, ``examples/`` and ``events/``.
      cache: as for `open_dataset`.
    """
    report = Report(strict=False)
    dataset = open_checked(root, cache, report)
    return report.problems, dataset


def summary(dataset: Dataset) -> str:
    """Tables for a person: splits, events with lengths of histories, ids beyond tables, learned vocabularies."""
    source, schema = dataset.source, dataset.schema
    if not isinstance(source, ParquetSource):
        raise TypeError(f"only Parquet data has a summary, not a {type(source).__name__}")
    heading = f"data set {schema.name!r}: {len(source)} rows, fingerprint {dataset.fingerprint[:16]}"

    splits = [
        ["split", "rows", "first request (UTC)", "last request (UTC)", *(f"mean {task}" for task in schema.tasks)]
    ]
    masked = [schema.tasks.index(task) for task, policy in schema.nulls if policy == "masked"]
    splits[0] += [f"without {schema.tasks[i]}" for i in masked]
    for name, rows in dataset.splits.items():
        times = source.column("request_time_ms")[rows.start : rows.stop]
        splits.append([name, str(len(rows)), text_of(times[0]), text_of(times[-1])])
        splits[-1] += ["-" if np.isnan(mean) else f"{mean:.4f}" for mean in _weighted_means(source, rows)]
        labels = source.column("labels")[rows.start : rows.stop]
        splits[-1] += [f"{sum(np.isnan(part).sum() for part in _chunks(labels[:, i])) / len(rows):.2%}" for i in masked]

    events = [["events", "count", "first (UTC)", "last (UTC)", "empty histories", *(f"length {q}" for q in _QUANTILES)]]
    for i, event in enumerate(schema.events):
        times = source.column(f"events.{i}.time_ms")
        bounds = [(int(part.min()), int(part.max())) for part in _chunks(times)]
        span = [text_of(min(low for low, _ in bounds)), text_of(max(high for _, high in bounds))] if bounds else _NONE
        lengths = source.column(f"history.{i}.stop") - source.column(f"history.{i}.start")
        quantiles = np.quantile(lengths, list(_QUANTILES.values()))
        events.append([event.name, str(len(times)), *span, f"{np.mean(lengths == 0):.2%}"])
        events[-1] += [f"{quantile:.0f}" for quantile in quantiles]

    features = [["feature", "vocabulary", "overflow", "ids", "beyond vocabulary", "share"]]
    for i, feature in enumerate(schema.categorical):
        features.append(_vocabulary(feature.name, feature, source.column("categorical")[:, i]))
    for i, feature in enumerate(schema.multi_valued):
        features.append(_vocabulary(feature.name, feature, source.column(f"multi_valued.{i}.values")))
    for i, event in enumerate(schema.events):
        for j, field in enumerate(event.categorical):
            features.append(_vocabulary(f"{event.name}.{field.name}", field, source.column(f"events.{i}.ids")[:, j]))
    learned = [["vocabulary", "values with an id", "values left out"]]
    if dataset.learned is not None:
        for name, found in read_learned(dataset.learned)["vocabularies"].items():
            learned.append([name, str(found["values"]), str(found["left_out"])])
    tables = [_table(rows) for rows in (splits, events, features, learned) if len(rows) > 1]
    return "\n\n".join([heading, *tables])


def tells_of(root: Path, *, otherwise: str) -> bool:
    """Checks what an import made and prints its summary; or the problems and what to do `otherwise`, and is false."""
    problems, dataset = validate(root)
    for problem in problems:
        print(problem, file=sys.stderr)
    if dataset is None:
        print(f"{root}: {otherwise}", file=sys.stderr)
        return False
    print(summary(dataset))
    return True


def main(args: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 1 for data with problems, 2 if files could not be read or written."""

    def check(
        path: Annotated[Path, tyro.conf.Positional],
        cache: Path | None = None,
    ) -> int:
        """Checks a prepared data set; prints its problems and exits 1, or a summary and exits 0.

        Args:
          path: Folder with schema.json, examples/<split>/*.parquet and events/<type>/*.parquet.
          cache: Folder for the converted columns; default is KUNLUN_CACHE, else ~/.cache/kunlun_jax.
        """
        problems, dataset = validate(path, cache)
        if dataset is None:
            for problem in problems:
                print(problem)
            print(f"{path}: {len(problems)} problem{'s' * (len(problems) != 1)}; docs/own_data.md has the rules")
            return 1
        print(summary(dataset))
        return 0

    try:
        return tyro.cli(check, args=args, prog="python -m kunlun_jax.data.parquet.validate")
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _weighted_means(source: ParquetSource, rows: range) -> np.ndarray:
    sums, weight = np.zeros((2, len(source.schema.tasks)))
    for start in range(rows.start, rows.stop, _CHUNK):
        part = slice(start, min(start + _CHUNK, rows.stop))
        weights, labels = (source.column(name)[part].astype(np.float64) for name in ("weights", "labels"))
        there = ~np.isnan(labels)
        sums += weights @ np.where(there, labels, 0)
        weight += weights @ there
    return np.divide(sums, weight, out=np.full_like(sums, np.nan), where=weight > 0)


def _chunks(column: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(column), _CHUNK):
        yield column[start : start + _CHUNK]


def _vocabulary(name: str, feature: Categorical, ids: np.ndarray) -> list[str]:
    beyond = sum(int(np.count_nonzero(part >= feature.size)) for part in _chunks(ids))
    share = f"{beyond / len(ids):.2%}" if len(ids) else "-"
    return [name, str(feature.size), feature.overflow, str(len(ids)), str(beyond), share]


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *numbers]))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
