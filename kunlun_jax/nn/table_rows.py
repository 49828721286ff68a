"""Where the rows of an embedding table lie: a small table in order, a large one dealt to many equal parts.

A large table is spread over devices by rows, each of which holds a run of what is stored. Ids are often given out by
frequency, so rows in order would put nearly all that is read on the first device; dealt in turn, every device gets its
share. The parts are as many as the devices can be, whatever they are at the moment, so a table is stored the same on
one device and on 512, and a checkpoint of one mesh is read on another as it is.

Source: ours (O).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kunlun_jax.data.schema import Schema
from kunlun_jax.parallel import MOST_DEVICES

PARTS = MOST_DEVICES
"""Parts of a large table: a multiple of every number of devices that may share it."""

LARGE = 1 << 16
"""Rows from which on a table is dealt. A smaller one takes a few megabytes, and every device has all of it."""


def is_dealt(rows: int) -> bool:
    """Whether a table with this many rows is dealt to parts."""
    return rows >= LARGE


def dealt(schema: Schema) -> list[str]:
    """The tables of a schema that are dealt, by name."""
    return sorted(name for name, table in schema.tables.items() if is_dealt(table.rows))


def stored_rows(rows: int) -> int:
    """Rows that a table of `rows` rows takes, those that only fill up its parts included."""
    return -(-rows // PARTS) * PARTS if is_dealt(rows) else rows


def place(ids: Any, rows: int) -> Any:
    """Where the rows `ids` of a table of `rows` rows are stored: row ``i`` of a large one is in part ``i % PARTS``.

    Args:
      ids: integers, an array of NumPy, JAX or PyTorch.
      rows: of the table.
    """
    return ids % PARTS * (stored_rows(rows) // PARTS) + ids // PARTS if is_dealt(rows) else ids


def make_parts(
    make: Callable[[jax.Array, int], Float[Array, "part dim"]],
    key: jax.Array,
    rows: int,
    *,
    first: jax.Array | int = 0,
    parts: int = PARTS,
) -> Float[Array, "_ dim"]:
    """New parts of a large table, made one by one.

    Made all at once, random numbers need three times their own memory on top, and a table may fill half the machine.
    Each part has a key of its own, so the numbers do not depend on how many devices share the work.

    Args:
      make: ``make(key, rows)`` makes rows of a part.
      key: of the table.
      rows: of the whole table.
      first: number of the first part.
      parts: how many.
    """
    each = stored_rows(rows) // PARTS
    shape = jax.eval_shape(lambda: make(key, each))

    def write(number: jax.Array, table: jax.Array) -> jax.Array:
        new = make(jax.random.fold_in(key, first + number), each)
        return jax.lax.dynamic_update_slice_in_dim(table, new, number * each, axis=0)

    return jax.lax.fori_loop(0, parts, write, jnp.zeros((parts * each, *shape.shape[1:]), shape.dtype))
