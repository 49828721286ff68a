"""`pack`: raw rows of a source become one `Batch` of fixed shape, and what was cut or unknown is counted.

The shapes depend only on the schema, the batch size and the capacities. Ids are mapped to table rows here, at the last
moment on the host, so a data set is stored once whatever the sizes of its tables.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from kunlun_jax.batch import Batch, Jagged
from kunlun_jax.data.dataset import EventRows, Ragged, Rows
from kunlun_jax.data.schema import NULL_ID, Categorical, Schema
from pallas_kernels.jagged import ROW_ALIGNMENT, aligned


@dataclasses.dataclass(frozen=True)
class Counts:
    """What went into one or more batches and what did not; `+` adds two, and ``sum(counts, Counts())`` adds many.

    Attributes:
      examples: real examples.
      filled: rows of weight 0 that only fill up a batch.
      events: event type -> events in the batch.
      events_cut: event type -> events left out because of `max_events` (the oldest ones).
      events_cut_by_capacity: event type -> events left out because the batch had no more rows (the oldest ones).
      items: multi-valued feature -> ids in the batch.
      items_cut_by_capacity: multi-valued feature -> ids left out because the batch had no more rows (the last ones).
      beyond_vocabulary: feature, or ``type.field`` for event fields -> ids in the batch that the table does not hold.
      events_of_fullest: where devices share batches, the events of the share of each batch that has most of them; that
        times the devices over all events is the imbalance.
    """

    examples: int = 0
    filled: int = 0
    events: dict[str, int] = dataclasses.field(default_factory=dict)
    events_cut: dict[str, int] = dataclasses.field(default_factory=dict)
    events_cut_by_capacity: dict[str, int] = dataclasses.field(default_factory=dict)
    items: dict[str, int] = dataclasses.field(default_factory=dict)
    items_cut_by_capacity: dict[str, int] = dataclasses.field(default_factory=dict)
    beyond_vocabulary: dict[str, int] = dataclasses.field(default_factory=dict)
    events_of_fullest: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(_added(a, b) for a, b in zip(_values(self), _values(other), strict=True)))

    def flat(self) -> dict[str, int]:
        """Flat names, as the metrics file has them: ``events_cut/click``."""
        flat = {}
        for field, value in zip(dataclasses.fields(self), _values(self), strict=True):
            named = {f"/{name}": number for name, number in value.items()} if isinstance(value, dict) else {"": value}
            flat |= {field.name + name: number for name, number in named.items()}
        return flat


def capacity_names(schema: Schema) -> tuple[str, ...]:
    """The keys of a capacity mapping: event types, then multi-valued features.

    Raises:
      ValueError: an event type and a multi-valued feature have the same name.
    """
    names = tuple(event.name for event in schema.events) + tuple(feature.name for feature in schema.multi_valued)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"schema {schema.name!r}: {twice} name both event types and multi-valued features; rename one")
    return names


def pack(schema: Schema, rows: Rows, batch_size: int, capacity: Mapping[str, int]) -> tuple[Batch, Counts]:
    """Packs `rows` into a batch of `batch_size` examples; missing ones become rows of weight 0 with number -1.

    An id at or beyond its table's `size` goes to the out-of-vocabulary row ``size``, or by a hash to one of the others,
    as the feature's `overflow` says. Where the histories of a type do not fit, all are cut at the old end to the
    largest common length with which they do (multi-valued features: at the end of the list).

    Args:
      schema: of the data set.
      rows: at most `batch_size` examples; ids are not negative, or `NULL_ID` where the schema allows nulls.
      batch_size: examples in the batch.
      capacity: packed rows per event type and multi-valued feature; multiples of 8.

    Raises:
      ValueError: more rows than `batch_size`, or a capacity is missing, unknown or not a multiple of 8.
    """
    count = len(rows.row)
    if count > batch_size:
        raise ValueError(f"{count} rows do not fit a batch of {batch_size}")
    _check_capacity(schema, capacity)
    beyond: dict[str, int] = {}

    categorical, outside = map_ids(rows.categorical, schema.categorical)
    beyond |= {f.name: int(n) for f, n in zip(schema.categorical, outside, strict=True)}

    multi_valued, items, items_cut = {}, {}, {}
    for feature in schema.multi_valued:
        name = feature.name
        ragged: Ragged = rows.multi_valued[name]
        layout = _Layout.of(ragged.splits, batch_size, capacity[name], keep_newest=False)
        ids, outside = map_ids(layout.take(ragged.values[:, None]), (feature,))
        multi_valued[name] = layout.jagged(layout.padded(ids[:, 0]))
        items[name], items_cut[name], beyond[name] = layout.kept, layout.cut, int(outside[0])

    events, kept, cut, cut_by_capacity = {}, {}, {}, {}
    for event in schema.events:
        name = event.name
        history: EventRows = rows.events[name]
        layout = _Layout.of(history.splits, batch_size, capacity[name], keep_newest=True)
        ids, outside = map_ids(layout.take(history.ids), event.categorical)
        age_ms = np.repeat(rows.request_time_ms, layout.aligned[:count]) - layout.take(history.time_ms, zero_gaps=False)
        age_ms[layout.gaps] = 0
        values = {
            "ids": layout.padded(ids),
            "dense": layout.padded(layout.take(history.dense)),
            "age": layout.padded((age_ms / 1000).astype(np.float32)),
        }
        events[name] = layout.jagged(values)
        kept[name], cut_by_capacity[name] = layout.kept, layout.cut
        cut[name] = int(history.available.sum() - history.splits[-1])
        beyond |= {f"{name}.{f.name}": int(n) for f, n in zip(event.categorical, outside, strict=True)}

    batch = Batch(
        categorical=_filled(categorical, batch_size, np.int32),
        multi_valued=multi_valued,
        dense=_filled(rows.dense, batch_size, np.float32),
        events=events,
        labels=_filled(rows.labels, batch_size, np.float32),
        weights=_filled(rows.weights, batch_size, np.float32),
        request_time=_filled(rows.request_time_ms // 1000, batch_size, np.uint32),
        row=_filled(rows.row, batch_size, np.int32, fill=-1),
    )
    filled = batch_size - count
    return batch, Counts(count, filled, kept, cut, cut_by_capacity, items, items_cut, beyond)


def map_ids(ids: np.ndarray, features: tuple[Categorical, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Table rows for raw ids, and how many ids of each feature were beyond its table.

    Args:
      ids: int64 ``[items, features]``; `NULL_ID`, or not negative.
      features: one per column.

    Returns:
      int32 ``[items, features]`` and int64 ``[features]``.
    """
    sizes = np.array([feature.size for feature in features], np.int64)
    capped = np.minimum(ids, sizes)
    rows = capped.astype(np.int32)
    outside = np.zeros(len(features), np.int64)
    for column, feature in enumerate(features):
        beyond = capped[:, column] == feature.size
        outside[column] = np.count_nonzero(beyond)
        if feature.overflow == "hash" and outside[column]:
            rows[beyond, column] = hashed(ids[beyond, column], feature.size)
        nulls = capped[:, column] == NULL_ID
        if nulls.any():
            rows[nulls, column] = feature.size + (feature.overflow == "oov")
    return rows, outside


def hashed(ids: np.ndarray, size: int) -> np.ndarray:
    """Spreads ids over ``0 .. size - 1``: the splitmix64 finaliser, modulo `size`. Changing it changes the model."""
    mixed = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) % np.uint64(size)).astype(np.int32)


def longest_that_fits(lengths: np.ndarray, capacity: int) -> int:
    """The largest multiple of 8 to which lists can be cut so that their aligned rows fit `capacity`.

    Args:
      lengths: int64 ``[examples]``, items of each list; not all of them fit.
      capacity: rows, a multiple of 8.
    """
    blocks = np.sort(aligned(lengths) // ROW_ALIGNMENT)
    before = np.concatenate([[0], np.cumsum(blocks)[:-1]])  # blocks of all shorter lists
    others = np.arange(len(blocks), 0, -1)  # lists at least as long
    room = capacity // ROW_ALIGNMENT
    # Cutting to the j-th smallest length needs before[j] + others[j] * blocks[j]; the first that does not fit bounds
    # the answer from above, and all lists before it stay whole.
    j = int(np.argmax(before + others * blocks > room))
    return int((room - before[j]) // others[j]) * ROW_ALIGNMENT


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where the items of ragged lists go in a packed array of `capacity` rows."""

    lengths: np.ndarray  # int64 [batch], after the cut
    aligned: np.ndarray  # int64 [batch], rows occupied
    row_splits: np.ndarray  # int64 [batch + 1]
    source: np.ndarray  # int64 [occupied rows], item of each row; in gaps any item
    gaps: np.ndarray  # int64 [gap rows], occupied rows that hold no item
    capacity: int
    kept: int
    cut: int

    @staticmethod
    def of(splits: np.ndarray, batch_size: int, capacity: int, keep_newest: bool) -> "_Layout":
        available = np.diff(splits)
        lengths = available
        if aligned(available).sum() > capacity:
            lengths = np.minimum(available, longest_that_fits(available, capacity))
        first = splits[1:] - lengths if keep_newest else splits[:-1]
        rows = aligned(lengths)
        row_splits = np.zeros(batch_size + 1, np.int64)
        np.cumsum(rows, out=row_splits[1 : len(rows) + 1])
        row_splits[len(rows) + 1 :] = row_splits[len(rows)]
        source = np.arange(row_splits[-1]) + np.repeat(first - row_splits[: len(rows)], rows)
        free = rows - lengths
        ends = row_splits[1 : len(rows) + 1] - np.cumsum(free)
        gaps = np.arange(free.sum()) + np.repeat(ends, free)
        kept = int(lengths.sum())
        pad = (0, batch_size - len(lengths))
        lengths, rows = np.pad(lengths, pad), np.pad(rows, pad)
        return _Layout(lengths, rows, row_splits, source, gaps, capacity, kept, int(available.sum()) - kept)

    def take(self, items: np.ndarray, zero_gaps: bool = True) -> np.ndarray:
        """The occupied rows, ``[occupied, ...]``."""
        if not len(items):  # every row is empty, and `take` refuses to take from an empty array
            return np.zeros((0, *items.shape[1:]), items.dtype)
        taken = np.take(items, self.source, axis=0, mode="clip")  # gaps after the last item point past the end
        if zero_gaps:
            taken[self.gaps] = 0
        return taken

    def padded(self, occupied: np.ndarray) -> np.ndarray:
        """The occupied rows followed by zeros up to the capacity."""
        values = np.empty((self.capacity, *occupied.shape[1:]), occupied.dtype)
        values[: len(occupied)] = occupied
        values[len(occupied) :] = 0
        return values

    def jagged(self, values) -> Jagged:
        return Jagged(values, self.row_splits.astype(np.int32), self.lengths.astype(np.int32))


def _check_capacity(schema: Schema, capacity: Mapping[str, int]) -> None:
    names = capacity_names(schema)
    if set(capacity) != set(names):
        raise ValueError(f"capacity names {sorted(capacity)}; schema {schema.name!r} needs exactly {sorted(names)}")
    for name, rows in capacity.items():
        if rows < ROW_ALIGNMENT or rows % ROW_ALIGNMENT:
            raise ValueError(f"capacity of {name!r} is {rows} rows; it must be a positive multiple of {ROW_ALIGNMENT}")


def _filled(values: np.ndarray, size: int, dtype: type, fill: int = 0) -> np.ndarray:
    filled = np.full((size, *values.shape[1:]), fill, dtype)
    filled[: len(values)] = values
    return filled


def _values(counts: Counts) -> list[Any]:
    return [getattr(counts, field.name) for field in dataclasses.fields(counts)]


def _added(a: Any, b: Any) -> Any:
    if isinstance(a, dict):
        return {name: a.get(name, 0) + b.get(name, 0) for name in a | b}
    return a + b
