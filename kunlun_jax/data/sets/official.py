"""What the converters of official files share: reading CSV, vocabularies, and the prepared layout on disk."""

# pyright: reportAttributeAccessIssue=false
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc  # its functions are created at import, which pyright does not see
from jaxtyping import Int64
from pyarrow import csv

from kunlun_jax.data.cache import build_once, default_cache
from kunlun_jax.data.dataset import Dataset, DatasetConfig, gather_ranges
from kunlun_jax.data.digests import digests
from kunlun_jax.data.parquet.columns import FORMAT, write_columns
from kunlun_jax.data.parquet.files import find_layout, write_layout
from kunlun_jax.data.parquet.report import Report
from kunlun_jax.data.parquet.source import open_columns
from kunlun_jax.data.schema import Schema


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
      name: of the data set.
      rows_read: rows of the log files.
      duplicates: exact duplicates among them, dropped.
      splits: name -> rows.
      positive_rate: name of the split -> share of rows whose label is 1.
      events: event type -> rows.
    """

    name: str
    rows_read: int
    duplicates: int
    splits: dict[str, int]
    positive_rate: dict[str, float]
    events: dict[str, int]

    def __str__(self) -> str:
        splits = (f"{name} {rows:,} ({self.positive_rate[name]:.4f} positive)" for name, rows in self.splits.items())
        events = (f"{name} {rows:,}" for name, rows in self.events.items())
        return (
            f"{self.name}: {self.rows_read:,} rows read, {self.duplicates:,} exact duplicates dropped\n"
            f"  examples: {', '.join(splits)}\n  events: {', '.join(events)}"
        )


@dataclasses.dataclass(frozen=True)
class Official:
    """Names a data set's origin in error messages: missing or damaged files come from there, not from us."""

    name: str
    origin: str

    def error(self, path: Path, problem: str) -> ValueError:
        """A ValueError that names the file, what is wrong with it, and where to get a good one."""
        return ValueError(f"{path}: {problem}. {self.name} must be fetched from its authors: {self.origin}")


def check_whole(path: Path, official: Official, expected: str) -> None:
    """Refuses a text file that is missing, empty or cut off in the middle of a line."""
    if not path.is_file():
        raise official.error(path, f"no such file; expected {expected}")
    if path.stat().st_size == 0:
        raise official.error(path, f"is empty; expected {expected}")
    with path.open("rb") as file:
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            raise official.error(path, "does not end with a line break, so it was cut off; expected whole lines")


def check_header(path: Path, columns: Iterable[str], official: Official) -> None:
    """Refuses a CSV file whose first line lacks one of `columns`."""
    with path.open("rb") as file:
        header = file.readline().decode("utf-8", "replace").rstrip("\r\n").split(",")
    missing = [name for name in columns if name not in header]
    if missing:
        raise official.error(path, f"its first line lacks the columns {missing}; expected {list(columns)}")


def read_csv(
    path: Path, columns: Mapping[str, pa.DataType], official: Official, nullable: Sequence[str] = ()
) -> pa.Table:
    """Reads `columns` of a CSV file with a header; empty fields are null, and allowed only in `nullable`.

    Raises:
      ValueError: the file is missing, cut off, lacks columns, or holds values of another type.
    """
    check_whole(path, official, f"a CSV file with the columns {list(columns)}")
    check_header(path, columns, official)
    options = csv.ConvertOptions(
        column_types=dict(columns), include_columns=list(columns), strings_can_be_null=True, null_values=[""]
    )
    try:
        table = csv.read_csv(path, convert_options=options)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise official.error(path, f"is not the CSV expected: {error}") from error
    for name in columns:
        if name not in nullable and table[name].null_count:
            row = int(np.flatnonzero(table[name].is_null().to_numpy())[0])
            raise official.error(path, f"column {name!r} is empty in data row {row + 1}; expected a value in every row")
    if table.num_rows == 0:
        raise official.error(path, "holds no rows below its header")
    return table


def vocabulary(values: pa.Array | pa.ChunkedArray) -> tuple[Int64[np.ndarray, " rows"], int]:
    """Ids of values: 0 where null, else 1 + rank among the sorted distinct values; int64, and the number of ids."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    distinct = pc.unique(values.drop_null())
    distinct = distinct.take(pc.sort_indices(distinct))
    index = pc.fill_null(pc.index_in(values, value_set=distinct, skip_nulls=True), -1)
    return index.to_numpy(zero_copy_only=False).astype(np.int64) + 1, len(distinct) + 1


def padded_vocabulary(values: pa.Array | pa.ChunkedArray) -> tuple[Int64[np.ndarray, " rows"], int]:
    """`vocabulary` of a column of a feature file, with id 0 prepended: row 0 stands for what is not in the file."""
    ids, size = vocabulary(values)
    return np.append(0, ids), size


def index_of(ids: Int64[np.ndarray, " rows"], known: Int64[np.ndarray, " known"]) -> Int64[np.ndarray, " rows"]:
    """1 + rank of each id among the sorted ids `known`, 0 where it is not among them."""
    place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where(known[place] == ids, place + 1, 0).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Lists:
    """Lists of ids of the rows of a feature file; row 0 is the missing row."""

    values: np.ndarray  # int64 [items]
    splits: np.ndarray  # int64 [rows + 1]

    def take(self, rows: Int64[np.ndarray, " picked"]) -> pa.ListArray:
        """The lists of `rows` as an Arrow column of list<int32>."""
        index, splits = gather_ranges(self.splits[rows], self.splits[rows + 1])
        return pa.ListArray.from_arrays(splits.astype(np.int32), self.values[index].astype(np.int32))


def split_lists(values: pa.Array | pa.ChunkedArray, separator: str) -> tuple[Lists, Int64[np.ndarray, " rows"], int]:
    """Separated strings as lists of ids from 1, the first id of each (0 where null), and the number of ids.

    A missing row is prepended, so that row ``r`` of the file is row ``r + 1`` of the lists.
    """
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    parts = pc.split_pattern(values, separator)
    lengths = pc.fill_null(pc.list_value_length(parts), 0).to_numpy(zero_copy_only=False)
    ids, size = vocabulary(pc.list_flatten(parts))
    splits = np.zeros(len(values) + 2, np.int64)
    np.cumsum(lengths, out=splits[2:])
    starts = splits[1:-1]
    first = np.where(lengths > 0, np.append(ids, 0)[starts], 0)
    return Lists(ids, splits), first, size


def distinct_rows(columns: Sequence[Int64[np.ndarray, " rows"]]) -> Int64[np.ndarray, " kept"]:
    """Indices of the rows that are not exact duplicates of earlier rows, ascending."""
    order = np.lexsort(tuple(columns))  # stable, so the first of equal rows comes first
    fresh = np.ones(len(order), bool)
    fresh[1:] = np.any([column[order][1:] != column[order][:-1] for column in columns], axis=0)
    return np.sort(order[fresh]).astype(np.int64)


def write_prepared(
    out: Path, schema: Schema, splits: Mapping[str, pa.Table], events: Mapping[str, pa.Table], report: Conversion
) -> None:
    """Writes the layout of a prepared data set (docs/own_data.md), and ``report.json``, into a new folder."""
    for kind, tables in (("examples", splits), ("events", events)):
        for name, table in tables.items():
            if table.num_rows == 0:
                raise ValueError(
                    f"the log of {schema.name!r} has no row for {kind} {name!r}; it must have at least one"
                )
    write_layout(out, schema, splits, events)
    (out / "report.json").write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n")


def open_official(
    cache: Path | None,
    name: str,
    version: int,
    inputs: Sequence[Path],
    config: DatasetConfig,
    convert: Callable[[Path], Conversion],
) -> Dataset:
    """The data set of official files, kept as columns in ``<cache>/<name>-<fingerprint>``, made unless already there.

    The fingerprint covers the bytes of `inputs`, `config` (a dataclass) and the converter's `version`. `convert` writes
    the layout of a prepared data set into a folder; only its columns and report are kept.
    """
    cache = cache or default_cache()
    digest = hashlib.sha256(json.dumps([name, version, FORMAT, dataclasses.asdict(config)], sort_keys=True).encode())
    for path, content in zip(inputs, digests(inputs, cache), strict=True):
        digest.update(f"{path.name} {content}\n".encode())
    folder = cache / f"{name}-{digest.hexdigest()[:16]}"

    def make(work: Path) -> bool:
        prepared, report = work / "prepared", Report(strict=True)
        print(convert(prepared), flush=True)
        layout = find_layout(prepared, report)
        assert layout is not None  # a strict report raises instead
        write_columns(layout, work, report)
        (prepared / "report.json").rename(work / "report.json")
        shutil.rmtree(prepared)
        return True

    build_once(folder, make)
    return open_columns(folder)
