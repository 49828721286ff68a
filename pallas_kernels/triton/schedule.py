"""The items of a Triton launch: which rows stay and which stream past them, made on the device from the offsets.

An item is a run of rows of one example, a program of the kernel for each head. The items cover every row of the
stationary array: those that hold something, the gap after each example and the rows after the last one, so that the
kernel writes all of its output. Loads are masked row by row, so rows need no alignment and gaps may hold anything.
"""

import jax.numpy as jnp
from jaxtyping import Array, Int

from pallas_kernels.mosaic.schedule import Side

FIELDS = 8
"""Columns of an item: first stationary row, its rows that hold something, its rows to write, position of the first
one in its example, first streamed row, streamed rows, first row of streamed rows that all examples share, which is 0;
then zero."""


def capacity(side: Side, item_rows: int) -> int:
    """Most items of `item_rows` rows that the rows of this side can need, those after the last example included."""
    return (side.rows + (side.start.shape[0] + 1) * (item_rows - 1)) // item_rows


def items(own: Side, other: Side, *, item_rows: int, balance: bool) -> Int[Array, "items fields"]:
    """Cuts the rows of every example into items of `item_rows` rows, the last of them possibly shorter.

    Args:
      own: rows to cut.
      other: rows of the same examples that each item meets.
      item_rows: most rows of an item.
      balance: put the examples with the most streamed rows first, so that none of them starts last. Costs a sort of
        the batch; useless where all items stream about equally many rows.

    Returns:
      int32, the columns of `FIELDS`; entries after the last item in use have no rows.
    """
    stop = own.start[-1] + own.extent[-1]
    zero = jnp.zeros(1, jnp.int32)
    start = jnp.append(own.start, stop)
    length = jnp.append(own.length, zero)
    extent = jnp.append(own.extent, jnp.int32(own.rows) - stop)
    other_start = jnp.append(other.start, zero)
    other_length = jnp.append(other.length, zero)
    if balance:
        order = jnp.argsort(other_length, descending=True, stable=True)
        start, length, extent, other_start, other_length = (
            x[order] for x in (start, length, extent, other_start, other_length)
        )
    ends = jnp.cumsum((extent + (item_rows - 1)) // item_rows, dtype=jnp.int32)
    item = jnp.arange(capacity(own, item_rows), dtype=jnp.int32)
    owner = jnp.searchsorted(ends, item, side="right", method="compare_all").astype(jnp.int32)
    used = owner < ends.shape[0]
    owner = jnp.minimum(owner, ends.shape[0] - 1)
    first = (item - jnp.append(zero, ends[:-1])[owner]) * item_rows
    count = jnp.where(used, jnp.clip(length[owner] - first, 0, item_rows), 0)
    columns = (
        start[owner] + first,
        count,
        jnp.where(used, jnp.clip(extent[owner] - first, 0, item_rows), 0),
        first,
        other_start[owner],
        jnp.where(count > 0, other_length[owner], 0),
    )
    return jnp.stack(columns + (jnp.zeros_like(item),) * (FIELDS - len(columns)), axis=1)
