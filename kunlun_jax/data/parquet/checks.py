"""The checks on a prepared data set: one streaming pass that hands out only row groups in which nothing is wrong.

`open_dataset` runs it with a strict `Report`, where the first problem is an exception; the validator runs the same
pass with a collecting one. Every message names file, row group, row, column, value and what is expected.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kunlun_jax.data.schema import EventType, Schema

LAST_TIME_MS = (2**32 - 1) * 1000 + 999  # request times are held as uint32 seconds
LARGEST = 1e18  # magnitude of numbers; the squares of larger ones leave sums in float32 no room
FIRST_SPLITS = ("train", "valid", "test")
RESERVED_EXAMPLE_COLUMNS = ("request_time_ms", "history_time_ms", "weight")
RESERVED_EVENT_COLUMNS = ("time_ms",)


class DataError(ValueError):
    """A prepared data set is invalid; the message says where, and what is expected."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One kind of problem in one column of one file: where it is first, and how often it occurs.

    Attributes:
      kind: short name, such as "null" or "negative id".
      file: where.
      column: column name, or empty.
      message: the whole sentence about the first occurrence.
      count: values, rows or files with this problem.
    """

    kind: str
    file: Path
    column: str
    message: str
    count: int = 1

    def __str__(self) -> str:
        return self.message + (f" ({self.count} of this kind here)" if self.count > 1 else "")


class Report:
    """Takes problems: if strict, raises the first as a `DataError`; otherwise collects the first of each kind."""

    def __init__(self, strict: bool):
        self.strict = strict
        self._problems: dict[tuple[str, Path, str], Problem] = {}

    @property
    def problems(self) -> list[Problem]:
        """The first of each kind per file and column, in the order found."""
        return list(self._problems.values())

    def add(self, kind: str, file: Path, right: str, column: str = "", where: str = "", count: int = 1) -> None:
        """Reports a problem; `right` is the value and what it should be, `where` the row group and row."""
        place = ", ".join(part for part in (where, f"column {column!r}" if column else "") if part)
        message = f"{file}: {place}: {right}" if place else f"{file}: {right}"
        if self.strict:
            raise DataError(message)
        key = (kind, file, column)
        if key in self._problems:
            self._problems[key] = dataclasses.replace(self._problems[key], count=self._problems[key].count + count)
        else:
            self._problems[key] = Problem(kind, file, column, message, count)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The files of a data set: its schema, and per split and event type the Parquet files in order."""

    root: Path
    schema: Schema
    examples: dict[str, list[Path]]
    events: dict[str, list[Path]]

    @property
    def files(self) -> list[Path]:
        """All Parquet files."""
        return [file for files in (*self.examples.values(), *self.events.values()) for file in files]


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


def find_layout(root: Path, report: Report) -> Layout | None:
    """The files of the data set in `root`; None if there is no schema to check them against."""
    if not root.is_dir():
        report.add("no data set", root, "no such folder; give the one that holds schema.json, examples/ and events/")
        return None
    try:
        schema = Schema.read(root / "schema.json")
    except ValueError as error:
        report.add("schema", root / "schema.json", str(error).removeprefix(f"{root / 'schema.json'}: "))
        return None
    _check_names(schema, root / "schema.json", report)
    examples = {split: _parquet_files(root / "examples" / split, report) for split in _folders(root / "examples")}
    if "train" not in examples:
        right = f"no folder 'train', only {sorted(examples)}; examples of the training split belong there"
        report.add("no train split", root / "examples", right)
    order = [s for s in FIRST_SPLITS if s in examples] + sorted(set(examples) - set(FIRST_SPLITS))
    types = [event.name for event in schema.events]
    for extra in sorted(set(_folders(root / "events")) - set(types)):
        right = f"the schema has no event type {extra!r}, it has {types}; add it to schema.json or remove the folder"
        report.add("unknown event type", root / "events" / extra, right)
    events = {name: _parquet_files(root / "events" / name, report) for name in types}
    return Layout(root, schema, {split: examples[split] for split in order}, events)


def event_groups(layout: Layout, event: EventType, report: Report) -> Iterator[EventGroup]:
    """Valid row groups of one event type, in order; problems of the others go to `report`."""
    ids = [f.name for f in event.categorical]
    wanted = [("history_key", "int"), ("time_ms", "int")]
    wanted += [(name, "int") for name in ids] + [(name, "float") for name in event.dense]
    previous: tuple[int, int] | None = None
    for file in layout.events[event.name]:
        for group in _row_groups(file, wanted, report):
            key, time = group.integers("history_key"), group.times("time_ms")
            if group.usable("history_key", "time_ms"):
                group.refuse_unsorted(key, time, previous)
                previous = (int(key[-1]), int(time[-1]))
            columns = group.stacked(group.ids, ids, np.int64)
            dense = group.stacked(group.floats, list(event.dense), np.float32)
            if group.good:
                yield EventGroup(key, time, columns, dense)


def example_groups(layout: Layout, split: str, report: Report) -> Iterator[ExampleGroup]:
    """Valid row groups of one split, in order; problems of the others go to `report`."""
    schema = layout.schema
    wanted = [("request_time_ms", "int")] + [("history_key", "int")] * bool(schema.events)
    wanted += [(f.name, "int") for f in schema.categorical] + [(f.name, "list") for f in schema.multi_valued]
    wanted += [(name, "float") for name in schema.dense] + [(name, "label") for name in schema.tasks]
    wanted += [(name, "key") for name in schema.keys]
    optional = [("weight", "float"), ("history_time_ms", "int")]
    previous = None
    for file in layout.examples[split]:
        for group in _row_groups(file, wanted, report, optional):
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
            categorical = group.stacked(group.ids, [f.name for f in schema.categorical], np.int64)
            multi_valued = {f.name: group.id_lists(f.name) for f in schema.multi_valued}
            dense = group.stacked(group.floats, list(schema.dense), np.float32)
            masked = [name for name, policy in schema.nulls if policy == "masked"]
            labels = group.stacked(functools.partial(group.labels, masked=masked), list(schema.tasks), np.float32)
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


def _check_names(schema: Schema, file: Path, report: Report) -> None:
    features = [f.name for f in schema.categorical + schema.multi_valued] + list(schema.dense) + list(schema.tasks)
    for name in sorted(set(features) & set(RESERVED_EXAMPLE_COLUMNS)):
        report.add(
            "reserved name", file, f"{name!r} is a feature or task; that column has its own meaning, rename it", name
        )
    for event in schema.events:
        if Path(event.name).name != event.name:
            report.add("event type name", file, f"event type {event.name!r} must be usable as a folder name")
        fields = [f.name for f in event.categorical] + list(event.dense)
        for name in sorted(set(fields) & set(RESERVED_EVENT_COLUMNS)):
            right = f"{name!r} is a field of event type {event.name!r}; that column has its own meaning, rename it"
            report.add("reserved name", file, right, name)
    for table in schema.tables.values():
        if table.rows >= 2**31:
            right = f"table {table.name!r} has {table.rows} rows; table rows are int32, give less than {2**31}"
            report.add("table size", file, right)


def _folders(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.is_dir() and p.name[0] != ".") if path.is_dir() else []


def _parquet_files(folder: Path, report: Report) -> list[Path]:
    if not folder.is_dir():
        report.add("missing folder", folder, "no such folder; Parquet files of the schema's event type belong there")
        return []
    files = sorted((p for p in folder.glob("*.parquet") if p.name[0] != "."), key=lambda p: p.name)
    if not files:
        report.add("no files", folder, "no *.parquet file in this folder; it must hold at least one")
    return files


_IS_KIND = {
    "int": pa.types.is_integer,
    "float": lambda t: pa.types.is_floating(t) or pa.types.is_integer(t),
    "label": lambda t: pa.types.is_floating(t) or pa.types.is_integer(t) or pa.types.is_boolean(t),
    "list": lambda t: (
        (pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t))
        and pa.types.is_integer(t.value_type)
    ),
    "key": lambda t: pa.types.is_integer(_plain(t)) or _is_string(_plain(t)),
}
_KIND_NAMES = {
    "int": "an integer type such as int64",
    "float": "a float or integer type such as float32",
    "label": "a float or integer type with values in [0, 1]",
    "list": "a list of integers such as list<int64>",
    "key": "an integer or string type",
}


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def parquet_file(file: Path) -> pq.ParquetFile:
    """Opens a Parquet file with checksums on; OSError or ArrowException if it cannot be read."""
    return pq.ParquetFile(file, page_checksum_verification=True)


def _row_groups(
    file: Path, wanted: list[tuple[str, str]], report: Report, optional: list[tuple[str, str]] | None = None
) -> Iterator["_Group"]:
    unreadable = "; the file is truncated, still being written or not Parquet: write it again"
    if file.stat().st_size == 0:
        report.add("empty file", file, "the file has 0 bytes; write it again, or remove it")
        return
    try:
        parquet = parquet_file(file)
    except (pa.ArrowException, OSError) as error:
        report.add("unreadable", file, f"cannot be read ({error}){unreadable}")
        return
    with parquet:
        schema = parquet.schema_arrow
        present = set(schema.names)
        wanted = wanted + [(name, kind) for name, kind in optional or [] if name in present]
        usable, wrong = [], set()
        for name, kind in wanted:
            if name not in present:
                right = f"there is no such column, only {sorted(present)}; it must hold {_KIND_NAMES[kind]}"
                report.add("missing column", file, right, name)
                wrong.add(name)
            elif not _IS_KIND[kind](schema.field(name).type):
                right = f"its type is {schema.field(name).type}; it must be {_KIND_NAMES[kind]}"
                report.add("wrong type", file, right, name)
                wrong.add(name)
            else:
                usable.append(name)
        if parquet.metadata.num_rows == 0:
            report.add("no rows", file, "the file has 0 rows; write it again, or remove it")
        first_row = 0
        columns = [name for name in dict.fromkeys(usable) if name not in wrong]  # a key may be a feature as well
        for number in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(number).num_rows
            if rows == 0:
                continue
            try:
                table = parquet.read_row_group(number, columns=columns)
            except (pa.ArrowException, OSError) as error:
                where = f"row group {number}"
                report.add("unreadable", file, f"cannot be read ({error}){unreadable}", where=where)
            else:
                yield _Group(table, file, number, first_row, report, complete=not wrong)
            first_row += rows


class _Group:
    """One row group while it is checked. A missing or refused column reads as zeros that are never used."""

    def __init__(self, table: pa.Table, file: Path, number: int, first_row: int, report: Report, complete: bool):
        self._table, self._file, self._number, self._first_row, self._report = table, file, number, first_row, report
        self._refused: set[str] = set()
        self._complete = complete
        self.rows = table.num_rows

    @property
    def good(self) -> bool:
        """Whether nothing is wrong in it."""
        return self._complete and not self._refused

    def has(self, name: str) -> bool:
        return name in self._table.column_names

    def usable(self, *names: str) -> bool:
        """Whether the columns exist and nothing is wrong with them so far."""
        return all(self.has(name) and name not in self._refused for name in names)

    def stacked(self, read: Callable[[str], np.ndarray], names: list[str], dtype: type) -> np.ndarray:
        """Columns side by side, ``[rows, columns]``."""
        stacked = np.empty((self.rows, len(names)), dtype)
        for i, name in enumerate(names):
            stacked[:, i] = read(name)
        return stacked

    def integers(self, name: str) -> np.ndarray:
        """int64, no nulls."""
        array = self._column(name)
        return np.zeros(self.rows, np.int64) if array is None else self._int64(name, array)

    def ids(self, name: str) -> np.ndarray:
        """int64, not negative."""
        return self._not_negative(name, self.integers(name))

    def times(self, name: str) -> np.ndarray:
        """int64 milliseconds that fit uint32 seconds."""
        values = self.integers(name)
        right = f"times are milliseconds since 1970-01-01, from 0 to {LAST_TIME_MS}"
        self._refuse("time out of range", name, (values < 0) | (values > LAST_TIME_MS), values, right)
        return values

    def floats(self, name: str) -> np.ndarray:
        """float32, finite, at most `LARGEST` in magnitude."""
        array = self._column(name)
        return np.zeros(self.rows, np.float32) if array is None else self._float32(name, array)

    def _float32(self, name: str, array: pa.Array) -> np.ndarray:
        """float32; NaN where there is a null, and nowhere else."""
        values = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        finite = np.isfinite(values) | array.is_null().to_numpy(zero_copy_only=False)
        self._refuse("not a number", name, ~finite, values, "values must be finite, neither NaN nor infinite")
        too_big = finite & (np.abs(values) > LARGEST)
        right = f"values must be at most {LARGEST:g} in magnitude, so that their squares fit float32"
        self._refuse("too large", name, too_big, values, right)
        return np.where(too_big, 0, values).astype(np.float32)

    def labels(self, name: str, masked: Sequence[str]) -> np.ndarray:
        """float32 in [0, 1]; NaN for a null, if the column is one of `masked`."""
        if name in masked and self.has(name):
            values = self._float32(name, self._table.column(name).combine_chunks())
        else:
            remedy = f', or schema.json "nulls": {{"{name}": "masked"}}, and the row counts nothing for this task'
            array = self._column(name, remedy)
            values = np.zeros(self.rows, np.float32) if array is None else self._float32(name, array)
        self._refuse("label out of range", name, (values < 0) | (values > 1), values, "labels must lie in [0, 1]")
        return values

    def weights(self, name: str) -> np.ndarray:
        """float32, not negative."""
        values = self.floats(name)
        self._refuse("negative weight", name, values < 0, values, "weights must be 0 or more")
        return values

    def id_lists(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Values int64 ``[items]`` and lengths int64 ``[rows]``."""
        lists = self._column(name)
        if lists is None:
            return np.zeros(0, np.int64), np.zeros(self.rows, np.int64)
        counted = pc.call_function("list_value_length", [lists])
        lengths = counted.to_numpy(zero_copy_only=False).astype(np.int64)
        rows = np.repeat(np.arange(self.rows), lengths)
        items = lists.flatten()
        if self._refuse_nulls(name, items, rows):
            return np.zeros(0, np.int64), lengths
        return self._not_negative(name, self._int64(name, items, rows), rows), lengths

    def keys(self, name: str) -> pa.Array:
        """int64 or large_string, no nulls."""
        array = self._column(name)
        if array is None:
            return pa.array(np.zeros(self.rows, np.int64))
        kind = _plain(array.type)
        if pa.types.is_dictionary(array.type):
            array = array.cast(kind)
        return array.cast(pa.large_string()) if _is_string(kind) else pa.array(self._int64(name, array))

    def refuse_backwards(self, time: np.ndarray, previous: int | None) -> None:
        """Times must not decrease, here or from the previous row group."""
        before = _shifted(time, previous)
        wrong = time < before
        shown = [f"{t} after {b}" for t, b in _first(wrong, time, before)]
        right = "rows must be in order of request time"
        self._refuse("time goes backwards", "request_time_ms", wrong, shown, right)

    def refuse_future(self, history_time: np.ndarray, request: np.ndarray) -> None:
        """A history must not go beyond its request."""
        late = history_time > request
        shown = [f"{h} with request_time_ms {r}" for h, r in _first(late, history_time, request)]
        right = "it must not be after request_time_ms"
        self._refuse("history after request", "history_time_ms", late, shown, right)

    def refuse_unsorted(self, key: np.ndarray, time: np.ndarray, previous: tuple[int, int] | None) -> None:
        """Events must be sorted by key and time, here and from the previous row group."""
        keys_before = _shifted(key, previous and previous[0])
        times_before = _shifted(time, previous and previous[1])
        right = "events must be sorted by (history_key, time_ms)"
        wrong = key < keys_before
        shown = [f"{k} after {b}" for k, b in _first(wrong, key, keys_before)]
        self._refuse("unsorted events", "history_key", wrong, shown, right)
        wrong = (key == keys_before) & (time < times_before)
        shown = [f"{t} after {b} of the same history_key {k}" for t, b, k in _first(wrong, time, times_before, key)]
        self._refuse("unsorted events", "time_ms", wrong, shown, right)

    def _column(self, name: str, remedy: str = "") -> pa.Array | None:
        if not self.has(name):
            return None
        array = self._table.column(name).combine_chunks()
        return None if self._refuse_nulls(name, array, remedy=remedy) else array

    def _refuse_nulls(self, name: str, array: pa.Array, rows: np.ndarray | None = None, remedy: str = "") -> bool:
        if array.null_count:
            mask = array.is_null().to_numpy(zero_copy_only=False)
            self._refuse("null", name, mask, ["null"], f"there must be a value in every row{remedy}", rows)
        return array.null_count > 0

    def _int64(self, name: str, array: pa.Array, rows: np.ndarray | None = None) -> np.ndarray:
        values = array.to_numpy(zero_copy_only=False)
        if values.dtype == np.uint64:
            too_big = values > np.uint64(2**63 - 1)
            self._refuse("too large", name, too_big, values, f"values must be below {2**63}", rows)
        return values.astype(np.int64)

    def _not_negative(self, name: str, values: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        # Values that were refused as too large wrap to negative ones: one problem is enough.
        if name not in self._refused:
            right = "ids must be 0 or more; give unknown values an id of their own"
            self._refuse("negative id", name, values < 0, values, right, rows)
        return values

    def _refuse(
        self,
        kind: str,
        column: str,
        mask: np.ndarray,
        values: np.ndarray | list[str],
        right: str,
        rows: np.ndarray | None = None,
    ) -> None:
        """Reports the values under `mask`.

        Args:
          kind: of problem.
          column: its name.
          mask: what is wrong, per value.
          values: one per value, or a list with the text of the first wrong one.
          right: what they should be.
          rows: row of each value in this group, if there is not one value per row.
        """
        count = int(np.count_nonzero(mask))
        if not count:
            return
        self._refused.add(column)
        first = int(np.argmax(mask))
        value = values[0] if isinstance(values, list) else values[first].item()
        row = self._first_row + int(first if rows is None else rows[first])
        where = f"row group {self._number}, row {row}"
        self._report.add(kind, self._file, f"value {value}; {right}", column, where, count)


def _shifted(values: np.ndarray, previous: int | None) -> np.ndarray:
    """The value before each; `previous` before the first, or the first itself."""
    return np.concatenate([values[:1] if previous is None else [previous], values[:-1]])


def _first(mask: np.ndarray, *columns: np.ndarray) -> list[tuple[int, ...]]:
    """The values of the first row under `mask`, or nothing."""
    return [tuple(int(column[np.argmax(mask)]) for column in columns)] if mask.any() else []
