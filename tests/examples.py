"""A tiny schema, random batches of it through the real `pack`, and modules with parameters that hide nothing."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kunlun_jax.batch import Batch, Jagged
from kunlun_jax.data.dataset import EventRows, Ragged, Rows
from kunlun_jax.data.pack import pack
from kunlun_jax.data.schema import Categorical, EventType, Schema
from pallas_kernels.jagged import aligned

# Event types stand in an order that is not the alphabet's, since a tree of dicts is sorted; one is called as a part of
# the batch is. The table `item` is shared by a context feature and two event types, and small; `user` is large.
SCHEMA = Schema(
    name="tiny",
    categorical=(Categorical("user", 500), Categorical("item", 9)),
    multi_valued=(Categorical("tags", 5),),
    dense=("price", "hour"),
    events=(
        EventType("view", (Categorical("item", 9), Categorical("place", 400)), ("seconds",)),
        EventType("context", (Categorical("item", 9),)),
    ),
    tasks=("click", "buy"),
)
VIEWS = (0, 5, 13, 1, 0, 8)
CONTEXTS = (3, 0, 2, 0, 0, 9)
BATCH = 7
"""One more than there are examples, so that the last row only fills the batch."""
CAPACITY = {"view": 64, "context": 64, "tags": 64}
"""All alike, so that what tests run operation by operation is compiled for few shapes."""
TABLE_DIM = 4
"""Width of the tables."""


def splits_of(lengths: Sequence[int]) -> np.ndarray:
    """int64 ``[len + 1]``."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int64)


def random_rows(views: Sequence[int] = VIEWS, contexts: Sequence[int] = CONTEXTS, *, seed: int = 0) -> Rows:
    """Examples of `SCHEMA` with histories of these lengths."""
    rng = np.random.default_rng(seed)
    count = len(views)
    request = 1_700_000_000_000 + rng.integers(0, 10**6, count)

    def history(lengths: Sequence[int], sizes: tuple[int, ...], dense: int) -> EventRows:
        splits = splits_of(lengths)
        ids = np.stack([rng.integers(0, size, splits[-1]) for size in sizes], axis=1)
        ages = [np.sort(rng.integers(1_000, 10**8, n))[::-1] for n in lengths]
        time = np.concatenate([t - a for t, a in zip(request, ages, strict=True)]).astype(np.int64)
        return EventRows(ids, rng.normal(size=(splits[-1], dense)).astype(np.float32), time, splits, np.diff(splits))

    tags = splits_of([(3 * i) % 4 for i in range(count)])
    return Rows(
        row=np.arange(count),
        categorical=np.stack([rng.integers(0, 500, count), rng.integers(0, 9, count)], axis=1),
        multi_valued={"tags": Ragged(rng.integers(0, 5, tags[-1]), tags)},
        dense=rng.normal(size=(count, 2)).astype(np.float32),
        events={"view": history(views, (9, 400), 1), "context": history(contexts, (9,), 0)},
        labels=rng.integers(0, 2, (count, 2)).astype(np.float32),
        weights=np.ones(count, np.float32),
        request_time_ms=request,
    )


def take_rows(rows: Rows, index: Sequence[int]) -> Rows:
    """The examples `index` of `rows`, in that order."""
    index = np.asarray(index)

    def ragged(splits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        items = [np.arange(splits[i], splits[i + 1]) for i in index]
        return np.concatenate([np.zeros(0, np.int64), *items]), splits_of([len(i) for i in items])

    def history(events: EventRows) -> EventRows:
        items, splits = ragged(events.splits)
        return EventRows(events.ids[items], events.dense[items], events.time_ms[items], splits, events.available[index])

    lists = {name: (ragged(feature.splits), feature.values) for name, feature in rows.multi_valued.items()}
    return Rows(
        row=rows.row[index],
        categorical=rows.categorical[index],
        multi_valued={name: Ragged(values[items], splits) for name, ((items, splits), values) in lists.items()},
        dense=rows.dense[index],
        events={name: history(events) for name, events in rows.events.items()},
        labels=rows.labels[index],
        weights=rows.weights[index],
        request_time_ms=rows.request_time_ms[index],
    )


def random_batch(
    views: Sequence[int] = VIEWS, contexts: Sequence[int] = CONTEXTS, *, size: int = BATCH, seed: int = 0
) -> Batch:
    """`random_rows`, packed, on the device."""
    batch, _ = pack(SCHEMA, random_rows(views, contexts, seed=seed), size, CAPACITY)
    return jax.tree.map(jnp.asarray, batch)


def random_jagged(lengths: Sequence[int], dim: int, *, rows: int, seed: int = 0, gaps: float = 0.0) -> Jagged:
    """Normal values of width `dim` in `rows` packed rows; rows that hold no event hold `gaps`."""
    lengths = np.asarray(lengths, np.int32)
    splits = splits_of(aligned(lengths)).astype(np.int32)
    values = np.full((rows, dim), gaps, np.float32)
    rng = np.random.default_rng(seed)
    for start, length in zip(splits[:-1], lengths, strict=True):
        values[start : start + length] = rng.normal(size=(length, dim))
    return Jagged(jnp.asarray(values), jnp.asarray(splits), jnp.asarray(lengths))


def spoil_gaps(batch: Batch) -> Batch:
    """`batch` with NaN in the dense fields and ages of rows that hold no event."""

    def spoil(events: Jagged) -> Jagged:
        mask = events.mask()
        spoilt = {
            name: jnp.where(mask if x.ndim == 1 else mask[:, None], x, jnp.nan)
            for name, x in events.values.items()
            if name != "ids"
        }
        return events.replace(events.values | spoilt)

    return dataclasses.replace(batch, events={name: spoil(events) for name, events in batch.events.items()})


def build[M: nnx.Module](make: Callable[[], M], *, seed: int = 0, scale: float = 0.4) -> M:
    """The module that `make` makes, with every parameter drawn anew by NumPy.

    Nothing is compiled, so it is quick; and a bias or a gain left out of a computation shows, as new ones are 0 and 1.
    """
    graph, state = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(seed)
    return nnx.merge(graph, jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape), x.dtype), state))


def tiny_tables(schema: Schema = SCHEMA, *, dim: int = TABLE_DIM, seed: int = 0) -> dict[str, jax.Array]:
    """Normal float32 tables of a schema."""
    rng = np.random.default_rng(seed)
    return {n: jnp.asarray(rng.normal(size=(table.rows, dim)), jnp.float32) for n, table in schema.tables.items()}
