"""Embedding tables, of which a step touches only the rows it reads.

A table may hold 5e7 rows; a batch reads a few thousand of them. So the gradient is taken with respect to the rows
that were read, never to the table: `touch` finds them, `gather_rows` reads them, `embed` spreads them over features,
and the optimizer (`kunlun_jax.training.optimizer`) writes them back. Nothing along the way is as large as the table.

Source: InterFormer (P) for embedding tokens; updating touched rows is our own (O).
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from kunlun_jax.batch import Batch, pytree_dataclass
from kunlun_jax.data.schema import Schema
from kunlun_jax.nn.init import normal
from kunlun_jax.nn.table_rows import PARTS, is_dealt, make_parts, place, stored_rows


@pytree_dataclass
class Touched:
    """The rows of one table that a batch reads.

    Attributes:
      rows: ``[touched]`` int32, where they are stored (`nn.table_rows`), ascending and unique; padded with the number
        of stored rows, which no update reaches. None where all of them are taken, in order.
      slots: feature -> int32, shaped as the feature's ids: where in `rows` each id stands.
    """

    rows: Int[Array, " touched"] | None
    slots: dict[str, Int[Array, "..."]]


@pytree_dataclass
class Embedded:
    """Embeddings of a batch, float32.

    Attributes:
      categorical: ``[batch, features, dim]``.
      multi_valued: name -> ``[rows, dim]``, packed like the feature.
      events: event type -> ``[rows, fields, dim]``, packed like the events.
    """

    categorical: Float[Array, "batch features dim"]
    multi_valued: dict[str, Float[Array, "_ dim"]]
    events: dict[str, Float[Array, "_ _ dim"]]


def _features(schema: Schema, batch: Batch) -> Iterator[tuple[str, str, jax.Array]]:
    """Every id feature of a batch: its table, its own name, its ids."""
    for column, feature in enumerate(schema.categorical):
        yield feature.table_name, f"context/{feature.name}", batch.categorical[:, column]
    for feature in schema.multi_valued:
        yield feature.table_name, f"multi_valued/{feature.name}", batch.multi_valued[feature.name].values
    for event in schema.events:
        if event.name not in batch.events:
            continue
        for column, field in enumerate(event.categorical):
            yield (
                field.table_name,
                f"events/{event.name}/{field.name}",
                batch.events[event.name].values["ids"][:, column],
            )


def touch(schema: Schema, batch: Batch) -> dict[str, Touched]:
    """The rows of every table that `batch` reads, and where each id finds its own.

    A table with fewer rows than the batch has ids is taken whole; else the ids are sorted and made unique. Either way
    the cost follows the smaller of the two.
    """
    by_table: dict[str, dict[str, jax.Array]] = {}
    for table, name, ids in _features(schema, batch):
        by_table.setdefault(table, {})[name] = ids
    touched = {}
    for table, features in by_table.items():
        total = stored_rows(schema.tables[table].rows)
        features = {name: place(ids, schema.tables[table].rows) for name, ids in features.items()}
        count = sum(ids.size for ids in features.values())
        if total <= count:
            touched[table] = Touched(None, features)
            continue
        rows, slots = jnp.unique(
            jnp.concatenate(list(features.values())), size=count, fill_value=total, return_inverse=True
        )
        own, start = {}, 0
        for name, ids in features.items():
            own[name] = slots[start : start + ids.size].astype(jnp.int32)
            start += ids.size
        touched[table] = Touched(rows, own)
    return touched


def embed(schema: Schema, batch: Batch, touched: dict[str, Touched], rows: dict[str, jax.Array]) -> Embedded:
    """Spreads the rows that were read over the features of the batch; its gradient sums over repeated ids.

    The rows of all tables lie side by side, so that the context and each event type are read by one gather
    each, and not one for each feature.
    """
    dim = next(iter(rows.values())).shape[-1] if rows else 0
    side_by_side = jnp.concatenate(list(rows.values())) if rows else jnp.zeros((0, dim))
    places, first = {}, 0
    for table, part in rows.items():
        for name, slots in touched[table].slots.items():
            places[name] = first + jnp.clip(slots, 0, part.shape[0] - 1)
        first += part.shape[0]

    def read(places: Int[Array, "..."]) -> Float[Array, "... dim"]:
        return side_by_side.at[places].get(mode="promise_in_bounds")

    def read_all(names: list[str], count: int) -> Float[Array, "count features dim"]:
        return read(jnp.stack([places[name] for name in names], axis=1)) if names else jnp.zeros((count, 0, dim))

    return Embedded(
        categorical=read_all([f"context/{feature.name}" for feature in schema.categorical], batch.size),
        multi_valued={f.name: read(places[f"multi_valued/{f.name}"]) for f in schema.multi_valued},
        events={
            event.name: read_all(
                [f"events/{event.name}/{f.name}" for f in event.categorical], batch.events[event.name].rows
            )
            for event in schema.events
            if event.name in batch.events
        },
    )


def init_tables(
    schema: Schema, dim: int, *, scale: float, key: jax.Array, mesh: Mesh | None = None
) -> dict[str, Float[Array, "_ dim"]]:
    """New tables of a schema, float32, normal with standard deviation `scale`; table name -> ``[stored rows, dim]``.

    On a mesh each device makes its own parts of large tables. The numbers do not depend on it.
    """
    keys = jax.random.split(key, max(len(schema.tables), 1))

    def make(key: jax.Array, rows: int) -> Float[Array, "rows dim"]:
        return scale * normal(key, (rows, dim), jnp.float32)

    def make_large(key: jax.Array, rows: int) -> Float[Array, "rows dim"]:
        if mesh is None:
            return jax.jit(lambda key: make_parts(make, key, rows))(key)
        axes, parts = mesh.axis_names, PARTS // mesh.size

        def of_device(key: jax.Array) -> Float[Array, "rows dim"]:
            return make_parts(make, key, rows, first=jax.lax.axis_index(axes) * parts, parts=parts)

        spread = jax.shard_map(
            of_device, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(axes), check_vma=False
        )
        return jax.jit(spread)(key)

    return {
        name: make_large(k, table.rows) if is_dealt(table.rows) else make(k, table.rows)
        for k, (name, table) in zip(keys, schema.tables.items(), strict=False)
    }


def gather_rows(
    tables: dict[str, Float[Array, "_ dim"]], touched: dict[str, Touched]
) -> dict[str, Float[Array, "_ dim"]]:
    """The touched rows of each table, ``[touched, dim]``; padding past the end repeats the last row."""
    return {
        name: tables[name]
        if found.rows is None
        else tables[name].at[found.rows].get(mode="clip", indices_are_sorted=True)
        for name, found in touched.items()
    }


def lookup(schema: Schema, batch: Batch, tables: dict[str, Float[Array, "_ dim"]]) -> Embedded:
    """Embeddings of a batch, straight from tables that are whole on one device."""
    touched = touch(schema, batch)
    return embed(schema, batch, touched, gather_rows(tables, touched))
