"""Embedding tables in a step: the rows that a batch reads, and their update, on one device or on many.

On many devices each reads for its own share of the batch. Large tables lie in parts, and rows and gradients travel
(`kunlun_jax.training.exchange`); small ones are on every device, and their gradients are added over all.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from kunlun_jax.data.schema import Schema
from kunlun_jax.nn.embedding import Touched, gather_rows
from kunlun_jax.nn.table_rows import is_dealt, stored_rows
from kunlun_jax.parallel import Axis
from kunlun_jax.training import exchange
from kunlun_jax.training.exchange import Route
from kunlun_jax.training.optimizer import update_rows

Tables = dict[str, Float[Array, "_ dim"]]


def read(
    schema: Schema, tables: Tables, touched: Mapping[str, Touched], axis: Axis | None
) -> tuple[dict[str, Float[Array, "_ dim"]], dict[str, Route]]:
    """The touched rows of each table, ``[touched, dim]``, and the ways by which those of large tables came.

    Args:
      schema: of the data.
      tables: those of this device; of a large one, its run of rows.
      touched: what its share of the batch reads.
      axis: mesh axes over which all is spread; None on one device.
    """
    ways = {
        name: exchange.route(_stored(found, schema.tables[name].rows), tables[name].shape[0], axis)
        for name, found in touched.items()
        if axis is not None and is_dealt(schema.tables[name].rows)
    }
    rows = gather_rows(tables, {name: found for name, found in touched.items() if name not in ways})
    if axis is not None:
        rows |= {name: exchange.fetch(tables[name], way, axis) for name, way in ways.items()}
    return {name: rows[name] for name in touched}, ways


def update(
    optimizer: optax.GradientTransformation,
    tables: Tables,
    states: Mapping[str, Any],
    touched: Mapping[str, Touched],
    rows: Mapping[str, Float[Array, "_ dim"]],
    gradients: Mapping[str, Float[Array, "_ dim"]],
    ways: Mapping[str, Route],
    axis: Axis | None,
) -> tuple[dict[str, Float[Array, "_ dim"]], dict[str, Any]]:
    """Tables and states of `optimizer` after the touched rows have been updated.

    Args:
      optimizer: as for `optimizer.update_rows`.
      tables: as for `read`.
      states: of `optimizer`, by table.
      touched: what `read` got.
      rows: what it gave.
      ways: what it gave.
      gradients: with respect to `rows`.
      axis: as for `read`.
    """
    new_tables, new_states = dict(tables), dict(states)
    for name, part in touched.items():
        table, state, gradient = tables[name], states[name], gradients[name]
        if axis is None:
            new = update_rows(optimizer, table, state, part, rows[name], gradient)
        elif name in ways:
            new = exchange.update(optimizer, table, state, ways[name], gradient, axis)
        else:
            new = _update_everywhere(optimizer, table, state, part, gradient, axis)
        new_tables[name], new_states[name] = new
    return new_tables, new_states


def _stored(touched: Touched, rows: int) -> Int[Array, " touched"]:
    """Where the touched rows of a table of `rows` rows are stored."""
    return jnp.arange(stored_rows(rows), dtype=jnp.int32) if touched.rows is None else touched.rows


def _update_everywhere(optimizer, table, state, part: Touched, gradient, axis: Axis):
    """The same update on every device of a table that all have, by the sum of their gradients."""
    if part.rows is None:
        return update_rows(optimizer, table, state, part, table, lax.psum(gradient, axis))
    total = lax.psum(jnp.zeros_like(table).at[part.rows].add(gradient, mode="drop"), axis)
    reads = lax.psum(jnp.zeros(table.shape[0], jnp.int32).at[part.rows].add(1, mode="drop"), axis) > 0
    updates, new = optimizer.update(total, state)

    def kept(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(reads.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return kept(table, table + jnp.asarray(updates)), jax.tree.map(kept, state, new)
