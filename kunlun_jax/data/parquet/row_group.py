"""Row groups of Parquet files, checked while their columns are read.

Every message names file, row group, row, column, value and what is expected.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kunlun_jax.data.parquet import times, types
from kunlun_jax.data.parquet.files import Layout, partition
from kunlun_jax.data.parquet.learned import Learned
from kunlun_jax.data.parquet.report import Report
from kunlun_jax.data.parquet.vocabulary import as_text
from kunlun_jax.data.schema import NULL_ID, Categorical, EventType, NullPolicy

LARGEST = 1e18  # magnitude of numbers; the squares of larger ones leave sums in float32 no room
Wanted = list[tuple[str, types.Kind]]
"""Columns and what they are for."""


def parquet_file(file: Path) -> pq.ParquetFile:
    """Opens a Parquet file with checksums on; OSError or ArrowException if it cannot be read."""
    return pq.ParquetFile(file, page_checksum_verification=True)


def row_groups(
    layout: Layout,
    file: Path,
    wanted: Wanted,
    report: Report,
    *,
    optional: Wanted | None = None,
    event: EventType | None = None,
    learned: Learned | None = None,
) -> Iterator["RowGroup"]:
    """The row groups of a file that can be read; what is wrong otherwise goes to `report`.

    Args:
      layout: of the data set.
      file: one of its files.
      wanted: columns that it must have.
      report: takes the problems.
      optional: columns that it may have.
      event: whose file it is; None for examples.
      learned: gives values ids and nulls means; without it the former are zeros.
    """
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
        folders = {name: value for name, value in partition(file, layout.root).items() if name not in schema.names}
        present = {*schema.names, *folders}
        wanted = wanted + [(name, kind) for name, kind in optional or [] if name in present]
        usable, wrong = [], set()
        for name, _ in optional or []:
            # One that is nearly named so would be left out without a word; one that is missing is none.
            for other in sorted(present - {*dict(wanted)}) if name not in present else ():
                if _nearly(name, other):
                    right = f"its name is nearly {name!r}, an optional column; give it that name, or one less alike"
                    report.add("nearly a column", file, right, other)
        for name, kind in wanted:
            if name not in present:
                right = f"there is no such column, only {sorted(present)}; it must hold {types.KINDS[kind].name}"
                report.add("missing column", file, right, name)
                wrong.add(name)
            elif schema.names.count(name) > 1:
                right = f"there are {schema.names.count(name)} columns of this name; rename all but one"
                report.add("column twice", file, right, name)
                wrong.add(name)
            elif name in folders:
                if not _spelled(folders[name], kind):
                    right = f"the folder's name says {folders[name]!r}; it must be of {types.KINDS[kind].name}"
                    report.add("wrong type", file, right, name)
                    wrong.add(name)
            elif fault := types.fault(schema.field(name).type, kind):
                report.add("wrong type", file, fault, name)
                wrong.add(name)
            else:
                usable.append(name)
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
                for name, kind in wanted:
                    if name in folders and name not in wrong and name not in table.column_names:
                        table = table.append_column(name, _repeated(folders[name], kind, rows))
                yield RowGroup(table, layout, file, number, first_row, report, not wrong, event, learned)
            first_row += rows


def _nearly(name: str, other: str) -> bool:
    """Whether one name may be meant by the other: but for capitals they differ by a letter, or by the order of some.

    Of six letters one more or less is a ratio of 0.92 and one exchanged 0.83, so "height" is no "weight".
    """
    other = other.casefold()
    return sorted(other) == sorted(name) or difflib.SequenceMatcher(None, name, other).ratio() >= 0.9


def _spelled(value: str | None, kind: str) -> bool:
    """Whether a folder's name can spell a column of this kind; a null is refused later, with its row."""
    try:
        return kind not in ("list", "values") and (value is None or len(_repeated(value, kind, 1)) == 1)
    except (ValueError, OverflowError):  # the latter for a whole number beyond int64
        return False


def _repeated(value: str | None, kind: str, rows: int) -> pa.Array:
    """What a folder's name spells, for each row of a file below it."""
    text = (str, pa.string())
    of = {"key": text, "value": text, "float": (float, pa.float64()), "label": (float, pa.float64())}
    cast, kind_of = of.get(kind, (int, pa.int64()))
    return pa.nulls(rows, kind_of) if value is None else pa.repeat(pa.scalar(cast(value), kind_of), rows)


class RowGroup:
    """One row group while it is checked. A missing or refused column reads as zeros that are never used."""

    def __init__(
        self,
        table: pa.Table,
        layout: Layout,
        file: Path,
        number: int,
        first_row: int,
        report: Report,
        complete: bool,
        event: EventType | None,
        learned: Learned | None,
    ):
        self._table, self._schema, self._file, self._number = table, layout.schema, file, number
        self._first_row, self._report = first_row, report
        self._refused: set[str] = set()
        self._complete, self._learned = complete, learned
        self._prefix = f"{event.name}." if event else ""
        self._policies = dict(layout.schema.nulls)
        self.rows = table.num_rows

    @property
    def good(self) -> bool:
        """Whether nothing is wrong in it."""
        return self._complete and not self._refused

    def has(self, name: str) -> bool:
        """Whether there is such a column, of a type that can be read."""
        return name in self._table.column_names

    def usable(self, *names: str) -> bool:
        """Whether the columns exist and nothing is wrong with them so far."""
        return all(self.has(name) and name not in self._refused for name in names)

    def stacked(self, read: Callable[[Any], np.ndarray], columns: Sequence[Any], dtype: type) -> np.ndarray:
        """Columns side by side, ``[rows, columns]``."""
        stacked = np.empty((self.rows, len(columns)), dtype)
        for i, column in enumerate(columns):
            stacked[:, i] = read(column)
        return stacked

    def integers(self, name: str) -> np.ndarray:
        """int64, no nulls."""
        array = self._column(name, "int")
        return np.zeros(self.rows, np.int64) if array is None else self._int64(name, array)

    def ids(self, feature: Categorical) -> np.ndarray:
        """int64, not negative; `NULL_ID` for a null, if that has a row of its own."""
        array = self._column(feature.name, "int" if not feature.vocabulary else "value", "own_row")
        if array is None:
            return np.zeros(self.rows, np.int64)
        there = array.is_valid().to_numpy(zero_copy_only=False)
        ids = np.full(self.rows, NULL_ID, np.int64)
        ids[there] = self._ids(feature, array.drop_null(), np.flatnonzero(there))
        return ids

    def _ids(self, feature: Categorical, values: pa.Array, rows: np.ndarray) -> np.ndarray:
        """Ids of values without nulls, of which each is of one of `rows`."""
        if feature.vocabulary:
            known = self._learned and self._learned.vocabularies.get(feature.table_name)
            return known.ids(as_text(values)) if known else np.zeros(len(values), np.int64)
        return self._not_negative(feature.name, self._int64(feature.name, values, rows), rows)

    def values(self, name: str, rows: np.ndarray) -> pa.Array:
        """What is in a column of values, or of lists of them, as large_strings.

        Args:
          name: of a column that is there.
          rows: bool ``[rows]``, which count.
        """
        array = self._table.column(name).combine_chunks().filter(pa.array(rows))
        listed = types.fault(array.type, "values") is None
        return as_text(types.plain(array, "values").flatten() if listed else types.plain(array, "value"))

    def times(self, name: str) -> np.ndarray:
        """int64 milliseconds that a log can have and that fit uint32 seconds."""
        array = self._column(name, "time")
        if array is None:
            return np.zeros(self.rows, np.int64)
        values, unit = times.raw_times(array, self._schema)
        first, last = times.bounds(unit, self._schema)
        wrong = (values < first) | (values > last)
        if wrong.any():
            value = int(values[np.argmax(wrong)])
            right = times.what_is_right(value, unit, self._schema, pa.types.is_timestamp(array.type))
            self._refuse("time out of range", name, wrong, values, right)
        return times.to_ms(np.clip(values, first, last).astype(np.int64), unit)

    def floats(self, name: str) -> np.ndarray:
        """float32, finite, at most `LARGEST` in magnitude; NaN for a null, if an indicator marks it."""
        array = self._column(name, "float", "indicator")
        return np.zeros(self.rows, np.float32) if array is None else self._float32(name, array)

    def dense(self, names: tuple[str, ...]) -> np.ndarray:
        """float32 ``[rows, features]``, of which the last are the indicators of `Schema.with_indicators`."""
        values = self.stacked(self.floats, names, np.float32)
        marked = [i for i, name in enumerate(names) if self._policies.get(self._prefix + name) == "indicator"]
        nulls = np.isnan(values[:, marked])
        if marked and self._learned is not None:
            means = [self._learned.means[self._prefix + names[i]] for i in marked]
            values[:, marked] = np.where(nulls, np.array(means, np.float32), values[:, marked])
        return np.concatenate([values, nulls.astype(np.float32)], axis=1)

    def _float32(self, name: str, array: pa.Array) -> np.ndarray:
        """float32; NaN where there is a null, and nowhere else."""
        values = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        finite = np.isfinite(values) | array.is_null().to_numpy(zero_copy_only=False)
        self._refuse("not a number", name, ~finite, values, "values must be finite, neither NaN nor infinite")
        too_big = finite & (np.abs(values) > LARGEST)
        right = f"values must be at most {LARGEST:g} in magnitude, so that their squares fit float32"
        self._refuse("too large", name, too_big, values, right)
        return np.where(too_big, 0, values).astype(np.float32)

    def labels(self, name: str) -> np.ndarray:
        """float32 in [0, 1]; NaN for a null, if that masks the label."""
        array = self._column(name, "label", "masked")
        values = np.zeros(self.rows, np.float32) if array is None else self._float32(name, array)
        self._refuse("label out of range", name, (values < 0) | (values > 1), values, "labels must lie in [0, 1]")
        return values

    def weights(self, name: str) -> np.ndarray:
        """float32, not negative."""
        array = self._column(name, "float")
        values = np.zeros(self.rows, np.float32) if array is None else self._float32(name, array)
        self._refuse("negative weight", name, values < 0, values, "weights must be 0 or more")
        return values

    def id_lists(self, feature: Categorical) -> tuple[np.ndarray, np.ndarray]:
        """Values int64 ``[items]`` and lengths int64 ``[rows]``."""
        name, dropped = feature.name, self._policies.get(feature.name) == "dropped"
        lists = self._column(name, "list" if not feature.vocabulary else "values", "dropped")
        if lists is None:
            return np.zeros(0, np.int64), np.zeros(self.rows, np.int64)
        lengths = pc.call_function("list_value_length", [lists]).fill_null(0).to_numpy(zero_copy_only=False)
        rows = np.repeat(np.arange(self.rows), lengths)
        items = lists.flatten()
        if items.null_count and not dropped:
            self._refuse_nulls(name, items, rows, self._remedy(name, "dropped"))
            return np.zeros(0, np.int64), lengths.astype(np.int64)
        rows = rows[items.is_valid().to_numpy(zero_copy_only=False)]
        return self._ids(feature, items.drop_null(), rows), np.bincount(rows, minlength=self.rows).astype(np.int64)

    def keys(self, name: str) -> pa.Array:
        """int64 or large_string, no nulls."""
        array = self._column(name, "key")
        if array is None:
            return pa.array(np.zeros(self.rows, np.int64))
        return array if pa.types.is_large_string(array.type) else pa.array(self._int64(name, array))

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

    def _plain(self, name: str, kind: types.Kind) -> pa.Array:
        return types.plain(self._table.column(name).combine_chunks(), kind)

    def _column(self, name: str, kind: types.Kind, policy: NullPolicy | None = None) -> pa.Array | None:
        """A column as `types.plain` reads it; None if it is missing, or has nulls that no policy allows."""
        if not self.has(name):
            return None
        array = self._plain(name, kind)
        if policy and self._policies.get(self._prefix + name) == policy:
            return array
        remedy = self._remedy(name, policy) if policy else "; nulls of keys, times and weights have no policy"
        return None if self._refuse_nulls(name, array, remedy=remedy) else array

    def _remedy(self, name: str, policy: NullPolicy) -> str:
        means = {
            "masked": "the row counts nothing for this task",
            "own_row": "a null is an id with a row of its own",
            "dropped": "nulls are no items, and a null list is an empty one",
            "indicator": "a null is the mean of the training rows, marked by a feature of its own",
        }
        return f', or schema.json "nulls": {{"{self._prefix}{name}": "{policy}"}}, and {means[policy]}'

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
