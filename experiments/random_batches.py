"""Batches of random content whose histories are as long as one likes: what speed is measured on.

Histories are "jagged", of lengths as in KuaiRand-Pure, or "full", all as long as the cut allows.
"""

import dataclasses
from typing import Literal

import numpy as np

from kunlun_jax.batch import Batch, Jagged
from kunlun_jax.data.dataset import EventRows, Ragged, Rows
from kunlun_jax.data.pack import capacity_names, pack
from kunlun_jax.data.schema import Categorical, Schema
from pallas_kernels.jagged import aligned

Lengths = Literal["jagged", "full"]
MEAN = 0.073
"""Mean length over the longest: KuaiRand-Pure's impressions, 5.1 of 70, are near an exponential distribution."""


def random_batch(schema: Schema, size: int, longest: int, lengths: Lengths, seed: int = 0) -> Batch:
    """A batch of random ids and numbers with histories of at most `longest` events."""
    rng = np.random.default_rng(seed)
    request = 1_700_000_000_000 + rng.integers(0, 10**6, size)

    def ids(count: int, features: tuple[Categorical, ...]) -> np.ndarray:
        columns = [rng.integers(0, feature.size, count) for feature in features]
        return np.stack(columns, axis=1) if columns else np.zeros((count, 0), np.int64)

    def history(event) -> EventRows:
        count = np.full(size, longest)
        if lengths == "jagged":
            count = np.minimum(rng.exponential(MEAN * longest, size).astype(np.int64), longest)
        splits = np.concatenate([[0], np.cumsum(count)])
        age = np.concatenate([np.zeros(0), *(np.sort(rng.exponential(5e8, n))[::-1] for n in count)]).astype(np.int64)
        dense = rng.normal(size=(splits[-1], len(event.dense))).astype(np.float32)
        return EventRows(ids(splits[-1], event.categorical), dense, np.repeat(request, count) - age - 1, splits, count)

    lists = {
        feature.name: Ragged(ids(2 * size, (feature,))[:, 0], 2 * np.arange(size + 1))
        for feature in schema.multi_valued
    }
    rows = Rows(
        row=np.arange(size),
        categorical=ids(size, schema.categorical),
        multi_valued=lists,
        dense=rng.normal(size=(size, len(schema.dense))).astype(np.float32),
        events={event.name: history(event) for event in schema.events},
        labels=rng.integers(0, 2, (size, len(schema.tasks))).astype(np.float32),
        weights=np.ones(size, np.float32),
        request_time_ms=request,
    )
    needed = {name: max(8, aligned(np.diff(events.splits)).sum()) for name, events in rows.events.items()}
    return pack(schema, rows, size, {name: int(needed.get(name, 8 * size)) for name in capacity_names(schema)})[0]


def longest_history(batch: Batch) -> int:
    """Events of the longest history of any type, rounded up to 8 rows."""
    return int(aligned(np.concatenate([packed.lengths for packed in batch.events.values()])).max())


def in_rectangles(batch: Batch, longest: int) -> Batch:
    """The same batch (on the host) with every history in `longest` rows of its own, zeros after its events.

    Args:
      batch: its multi-valued features stay packed.
      longest: a multiple of 8, and no history is longer.

    Raises:
      ValueError: one is.
    """
    if longest % 8 or longest < longest_history(batch):
        raise ValueError(f"longest is {longest}; it must be a multiple of 8 and at least {longest_history(batch)}")

    def spread(packed: Jagged) -> Jagged:
        position = np.arange(longest)[None, :]
        event = position < np.asarray(packed.lengths)[:, None]
        row = np.where(event, np.asarray(packed.row_splits)[:-1, None] + position, 0).reshape(-1)

        def moved(values: np.ndarray) -> np.ndarray:
            values = np.asarray(values)[row]
            values[~event.reshape(-1)] = 0
            return values

        splits = longest * np.arange(batch.size + 1, dtype=np.int32)
        return Jagged({name: moved(values) for name, values in packed.values.items()}, splits, packed.lengths)

    return dataclasses.replace(batch, events={name: spread(packed) for name, packed in batch.events.items()})
