"""A flat log becomes a data set: ``python -m kunlun_jax.data.import_csv LOG OUT --user U --item I --time T --label L``

LOG is a CSV file (.csv, .tsv, also .gz, .bz2, .zst) or a Parquet file with a row for each item shown to somebody, under
any column names. Its rows become the examples, split by time, and the events: all of them "impression", and those with
a label an event type of its name. docs/own_data.md walks through it. The log is read into memory.
"""

import dataclasses
import difflib
import itertools
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tyro
from pyarrow import csv

from kunlun_jax.data.parquet.files import FIRST_SPLITS, RESERVED_EVENT_COLUMNS, RESERVED_EXAMPLE_COLUMNS, write_layout
from kunlun_jax.data.parquet.row_group import parquet_file
from kunlun_jax.data.parquet.times import to_ms
from kunlun_jax.data.parquet.validate import tells_of
from kunlun_jax.data.parquet.vocabulary import Counter, as_text
from kunlun_jax.data.schema import Allowed, Categorical, EventType, NullPolicy, Overflow, Schema, TimeUnit

_TIME = "request_time_ms"
"""Where the times of rows are kept, in the mapping's unit: a name that no other column of a log may have."""
_RESERVED = {*RESERVED_EXAMPLE_COLUMNS, *RESERVED_EVENT_COLUMNS, "history_key"}
_TRUE = {"1": 1.0, "true": 1.0, "yes": 1.0, "0": 0.0, "false": 0.0, "no": 0.0}


@dataclasses.dataclass(frozen=True)
class Mapping:
    """Which columns of the log are what."""

    log: tyro.conf.Positional[Path]
    """CSV or Parquet file with a row for each item shown to somebody."""
    out: tyro.conf.Positional[Path]
    """Folder to make."""
    user: str
    """Column of who saw the item; the user's earlier rows are the history."""
    item: str
    """Column of what was shown."""
    time: str
    """Column of when: whole numbers in time-unit since 1970, or text as 2026-01-31 12:00:00 (UTC, or with its zone)."""
    label: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN [COLUMN ...]")]
    """Columns of what came of it, each a task: from 0 to 1, or true and false; empty where it is not known."""
    item_features: tuple[str, ...] = ()
    """Columns that tell of the item, as its brand: in examples and events."""
    categorical: tuple[str, ...] = ()
    """Other columns of text or ids, as the device: in examples only."""
    dense: tuple[str, ...] = ()
    """Columns of numbers: in examples only."""
    time_unit: TimeUnit = "ms"
    """Of times that are whole numbers."""
    delimiter: str = ""
    """Of the CSV file; default: a tab for .tsv, else a comma."""
    splits: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of rows for train, valid and test, by time."""
    min_count: int = 1
    """A value needs to occur so often for a table row of its own, in training rows and in their events: those of items
    and their features count a row once more for each event that it is, as impression and as click."""
    overflow: Overflow = "oov"
    """Where other values go: to one extra row, or spread over the table."""
    impressions: bool = True
    """All rows are events of a type "impression", too."""
    allow: tuple[Allowed, ...] = ()
    """As in schema.json: relative_times for times that do not count from 1970."""


def import_log(mapping: Mapping) -> Schema:
    """Writes the data set that `mapping` describes into its new folder `out`; returns its schema.

    Raises:
      ValueError: the log or the mapping is wrong; names file, column, row and what would be right.
    """
    if mapping.out.exists():
        raise ValueError(f"{mapping.out}: this folder is there already; name a new one, or remove it")
    _check(mapping)
    table = _read(mapping)
    order = pc.call_function("sort_indices", [table[_TIME]], pc.SortOptions([("", "ascending")]))
    table = table.take(order)
    # Users by number, in the order in which the log names them first: a history has a key of whole numbers.
    users = table[mapping.user].combine_chunks().dictionary_encode().indices.cast(pa.int64())
    table = table.append_column("history_key", users)
    bounds = _bounds(table[_TIME].to_numpy(), mapping.splits)
    schema = _schema(mapping, table, bounds)
    mapping.out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{mapping.out.name}-", dir=mapping.out.parent))
    try:
        splits = zip(FIRST_SPLITS, itertools.pairwise(bounds), strict=True)
        examples = {
            split: _examples(mapping, table.slice(start, stop - start))
            for split, (start, stop) in splits
            if stop > start
        }
        events = {event.name: _events(mapping, table, event) for event in schema.events}
        write_layout(work, schema, examples, events)
        work.chmod(0o755)
        work.rename(mapping.out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return schema


def _check(mapping: Mapping) -> None:
    """Refuses a mapping that cannot work whatever the log holds."""
    names = _columns(mapping)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"columns {twice} are named for two purposes; give each one")
    reserved = sorted(_RESERVED & {*names} - {mapping.time})
    if reserved:
        raise ValueError(f"columns {reserved} have names with a meaning of their own here; rename them in the log")
    if not mapping.label:
        raise ValueError("label names no column; name at least one")
    if min(mapping.splits) < 0 or not mapping.splits[0] or abs(sum(mapping.splits) - 1) > 1e-6:
        raise ValueError(f"splits is {mapping.splits}; they must be 0 or more, train more, and add up to 1")
    if mapping.min_count < 1:
        raise ValueError(f"min-count is {mapping.min_count}; it must be at least 1")


def _columns(mapping: Mapping) -> list[str]:
    """All columns that are read."""
    first = [mapping.user, mapping.item, mapping.time, *mapping.label]
    return [*first, *mapping.item_features, *mapping.categorical, *mapping.dense]


def _texts(mapping: Mapping) -> tuple[str, ...]:
    """Columns that are read as text."""
    return (mapping.user, mapping.item, *mapping.item_features, *mapping.categorical)


def _read(mapping: Mapping) -> pa.Table:
    """The columns of the log under their own names, and the times of its rows as `_TIME`."""
    path = mapping.log
    if not path.is_file():
        raise ValueError(f"{path}: no such file; name the log")
    raw = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(mapping)
    for name in _columns(mapping):
        if name not in raw.column_names:
            near = difflib.get_close_matches(name, raw.column_names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{path}: there is no column {name!r}, only {raw.column_names}{hint}")
        if raw.column_names.count(name) > 1:
            raise ValueError(f"{path}: there are {raw.column_names.count(name)} columns {name!r}; rename all but one")
    if not raw.num_rows:
        raise ValueError(f"{path}: it has no rows below its header")
    columns: dict[str, Any] = {name: _text(path, name, raw[name]) for name in _texts(mapping)}
    for name in (mapping.user, mapping.item):
        _refuse_nulls(path, name, columns[name])
    columns |= {name: _numbers(path, name, raw[name]) for name in mapping.dense}
    columns |= {name: _labels(path, name, raw[name]) for name in mapping.label}
    columns[_TIME] = _times(mapping, raw[mapping.time])
    return pa.table(columns)


def _read_parquet(path: Path) -> pa.Table:
    """All columns."""
    try:
        with parquet_file(path) as file:
            return file.read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: it cannot be read as Parquet: {error}") from error


def _read_csv(mapping: Mapping) -> pa.Table:
    """All columns as text; empty fields are null."""
    path = mapping.log
    delimiter = mapping.delimiter or ("\t" if ".tsv" in path.suffixes else ",")
    # Names first, so that every column can be asked for as text.
    parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    try:
        with pa.input_stream(path, compression="detect") as stream:
            names = csv.open_csv(stream, parse_options=parse).schema.names
        convert = csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
        )
        with pa.input_stream(path, compression="detect") as stream:
            return csv.read_csv(stream, parse_options=parse, convert_options=convert)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: it is no CSV file with {delimiter!r} between its fields: {error}") from error


def _refuse_nulls(path: Path, name: str, column: pa.ChunkedArray) -> None:
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise ValueError(f"{path}: column {name!r} is empty in data row {row + 1}; every row must have one")


def _text(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """large_strings, null where the log has nothing."""
    try:
        return as_text(column)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"{path}: column {name!r} must hold text or numbers, one in each row, not {column.type}: {error}"
        ) from error


def _numbers(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """float64, null where the log has nothing."""
    try:
        return column.cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{path}: column {name!r} must hold numbers: {error}") from error


def _labels(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """float64 from 0 to 1, null where the log has nothing."""
    if pa.types.is_boolean(column.type):
        return column.cast(pa.float64())
    words = pc.call_function("utf8_lower", [_text(path, name, column)])
    known = pc.call_function("index_in", [words], pc.SetLookupOptions(pa.array(list(_TRUE), pa.large_string())))
    if known.null_count == column.null_count:
        codes = known.combine_chunks() if isinstance(known, pa.ChunkedArray) else known
        return pa.chunked_array([pa.array(list(_TRUE.values())).take(codes)])
    values = _numbers(path, name, column)
    numbers = values.to_numpy()
    wrong = ~((numbers >= 0) & (numbers <= 1)) & ~values.is_null().to_numpy()
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"{path}: column {name!r} is {numbers[row]} in data row {row + 1}; labels lie in [0, 1]")
    return values


def _times(mapping: Mapping, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """int64 in the mapping's unit; timestamps become numbers of it. The validator refuses what no log can have."""
    path, name = mapping.log, mapping.time
    _refuse_nulls(path, name, column)
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp(mapping.time_unit, column.type.tz), safe=False).cast(pa.int64())
    for kind in _TIME_KINDS:
        cast = _cast_to(kind, column)
        if cast is not None:
            return _times(mapping, cast) if pa.types.is_timestamp(kind) else cast
    # Of the kind that holds for the longest.
    row = max(_first_unlike(kind, column) for kind in _TIME_KINDS)
    raise ValueError(
        f"{path}: column {name!r} is {column[row].as_py()!r} in data row {row + 1}; write whole numbers (with "
        "--time-unit) or times as 2026-01-31 12:00:00, one kind in all rows"
    )


_TIME_KINDS = (pa.int64(), pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.float64())
"""Text is of one of these kinds: whole numbers, times of UTC, times with a zone, numbers that were floats."""


def _cast_to(kind: pa.DataType, column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """A column as timestamps, or as int64 from numbers; None if not all values are of this kind."""
    try:
        cast = column.cast(kind)
        return cast if pa.types.is_timestamp(kind) else cast.cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def _first_unlike(kind: pa.DataType, column: pa.ChunkedArray) -> int:
    """The first row that `_cast_to` cannot cast, of a column with one."""
    good, bad = 0, len(column)  # rows from the start that it can cast, and that it cannot
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (good, middle) if _cast_to(kind, column.slice(0, middle)) is None else (middle, bad)
    return good


def _bounds(times: np.ndarray, shares: Sequence[float]) -> list[int]:
    """Where splits begin and end in rows sorted by time; rows of one moment stay together."""
    ends = np.round(np.cumsum(shares) * len(times)).astype(int)
    starts = [int(np.searchsorted(times, times[end])) if end < len(times) else len(times) for end in ends]
    return [0, *starts[:-1], len(times)]


def _schema(mapping: Mapping, table: pa.Table, bounds: list[int]) -> Schema:
    train = table.slice(0, bounds[1])
    if not train.num_rows:
        raise ValueError(f"{mapping.log}: its first {mapping.splits[0]:.0%} are one moment, so train would be empty")

    names = ["impression"] * mapping.impressions + [n for n in mapping.label if _positive(table[n]).any()]
    # Vocabularies count the events before the last request of train, too; the size is to be that of those counts.
    time_ms = to_ms(train[_TIME].to_numpy(), mapping.time_unit)
    seen = train.filter(pa.array(time_ms < time_ms[-1]))
    of_events = [_rows_of_event(seen, name) for name in names]

    def feature(name: str) -> Categorical:
        counter = Counter()
        for rows in (train, *(of_events if name in (mapping.item, *mapping.item_features) else ())):
            counter.add(rows[name])
        size = max(1, int((counter.counts()["count"].to_numpy() >= mapping.min_count).sum()))
        return Categorical(name, size, mapping.overflow, name, vocabulary=True, min_count=mapping.min_count)

    def with_nulls(columns: Sequence[str], policy: NullPolicy, prefix: str = "") -> list[tuple[str, NullPolicy]]:
        return [(prefix + name, policy) for name in columns if table[name].null_count]

    of_item = tuple(feature(name) for name in (mapping.item, *mapping.item_features))
    others = tuple(feature(name) for name in mapping.categorical)
    return Schema(
        name=mapping.out.name,
        categorical=(feature(mapping.user), *of_item, *others),
        dense=mapping.dense,
        events=tuple(EventType(name, of_item) for name in names),
        tasks=mapping.label,
        keys=(mapping.user, mapping.item),
        group=mapping.user,
        time_unit=mapping.time_unit,
        allow=mapping.allow,
        nulls=(
            *with_nulls(_texts(mapping), "own_row"),
            *with_nulls(mapping.dense, "indicator"),
            *with_nulls(mapping.label, "masked"),
            *(pair for event in names for pair in with_nulls(mapping.item_features, "own_row", f"{event}.")),
        ),
    )


def _positive(labels: pa.ChunkedArray) -> np.ndarray:
    return labels.fill_null(0).to_numpy() > 0.5


def _rows_of_event(table: pa.Table, name: str) -> pa.Table:
    """The rows that are events of a type."""
    return table if name == "impression" else table.filter(pa.array(_positive(table[name])))


def _examples(mapping: Mapping, table: pa.Table) -> pa.Table:
    names = [*_texts(mapping), *mapping.dense, *mapping.label]
    columns = {name: table[name] for name in names}
    return pa.table({_TIME: table[_TIME], "history_key": table["history_key"], **columns})


def _events(mapping: Mapping, table: pa.Table, event: EventType) -> pa.Table:
    """The events of a type, sorted by user and time."""
    table = _rows_of_event(table, event.name).sort_by([("history_key", "ascending"), (_TIME, "ascending")])
    fields = {field.name: table[field.name] for field in event.categorical}
    return pa.table({"history_key": table["history_key"], "time_ms": table[_TIME], **fields})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    mapping = tyro.cli(Mapping, args=arguments, prog="python -m kunlun_jax.data.import_csv", description=__doc__)
    try:
        import_log(mapping)
        if not tells_of(mapping.out, otherwise="remove it, mend the log or the mapping, and import again"):
            return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\nTrain on it:\n  python -m experiments.train kunlun/small --data.root {mapping.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
