"""Vocabularies: ids for values of any kind, text or numbers, made from the rows that a model is trained on.

A value is its text, so that 7 and "7" are one value and numbers beyond 2^63 keep their identity. The most frequent
values of a table have the ids 0, 1, ... by falling frequency; every other one gets an id beyond the table's size, the
same for the same value everywhere, which `kunlun_jax.data.pack` counts, and hashes or sends to the extra row.

Counted are the examples of the training split, and the events before its last request. What nobody has seen at that
moment can have no row of its own.
"""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kunlun_jax.data.schema import Table

_MERGE = 1 << 20  # counts that may wait to be added up


class Counter:
    """How often each value of a table has occurred; memory for the distinct values."""

    def __init__(self):
        self._parts: list[pa.Table] = []
        self._waiting = 0

    def add(self, values: pa.Array) -> None:
        """Counts large_strings; nulls are none."""
        counted = pc.call_function("value_counts", [values.drop_null()])
        names = ["value", "count"]
        self._parts.append(pa.table([counted.field("values"), counted.field("counts")], names))
        self._waiting += len(counted)
        if self._waiting > _MERGE:
            self._parts = [self.counts()]
            self._waiting = 0

    def counts(self) -> pa.Table:
        """Columns ``value`` and ``count``, a row for each value in no order."""
        kind = pa.schema([("value", pa.large_string()), ("count", pa.int64())])
        parts = pa.concat_tables([kind.empty_table(), *self._parts])
        return parts.group_by("value").aggregate([("count", "sum")]).rename_columns(["value", "count"])


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The values of a table that have ids of their own.

    Attributes:
      values: large_strings, in the order of their ids.
      counts: int64, how often each occurred.
      size: ids of the table; the ids of all other values lie at or beyond it.
      left_out: distinct values that were counted and have no id of their own.
    """

    values: pa.Array
    counts: pa.Array
    size: int
    left_out: int

    @staticmethod
    def of(counter: Counter, table: Table) -> "Vocabulary":
        """The most frequent values that occurred `table.min_count` times; of equals those that come first as text."""
        counts = counter.counts()
        kept = counts.filter(pc.call_function("greater_equal", [counts["count"], pa.scalar(table.min_count)]))
        kept = kept.sort_by([("count", "descending"), ("value", "ascending")]).slice(0, table.size)
        values, numbers = kept["value"].combine_chunks(), kept["count"].combine_chunks()
        return Vocabulary(values, numbers, table.size, len(counts) - len(kept))

    def ids(self, values: pa.Array) -> np.ndarray:
        """int64 ids of large_strings without nulls."""
        found = pc.call_function("index_in", [values], pc.SetLookupOptions(self.values))
        ids = found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        unknown = np.flatnonzero(ids < 0)
        if len(unknown):
            coded = values.take(pa.array(unknown)).dictionary_encode()
            beyond = np.array([_beyond(value.as_py(), self.size) for value in coded.dictionary], np.int64)
            ids[unknown] = beyond[coded.indices.to_numpy(zero_copy_only=False)]
        return ids

    def write(self, path: Path) -> None:
        """A Parquet file: a value and its count in each row, row 0 for id 0."""
        pq.write_table(pa.table([self.values, self.counts], ["value", "count"]), path)


def _beyond(value: str, size: int) -> int:
    """An id of 62 bits at or beyond `size`, which depends on the value alone."""
    return size + int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8).digest(), "big") % (2**62 - size)


def as_text[T: (pa.Array, pa.ChunkedArray)](array: T) -> T:
    """The values of a column as large_strings: text as it is, whole numbers in decimal digits."""
    return array.cast(pa.large_string())
