"""The work list of a Mosaic kernel: which rows are computed against which, made on the device from the offsets.

A kernel keeps a tile of rows (the stationary side) and streams the rows of the same example past it (the streamed
side). In the forward pass and for dq the queries stay and the keys stream; for dk and dv it is the other way round. An
item of the list is a run of stationary tiles of one example. The list has a static bound and a count of the items in
use; a persistent kernel, one block per multiprocessor, deals them out in turn. The longest come first, so that no block
is left with one at the end. Items cover every row of the stationary array that an example owns, and those after the
last one, so that the kernel writes all of its output and nothing is zeroed first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from pallas_kernels.jagged import ROW_ALIGNMENT
from pallas_kernels.mosaic.tails import Ends

FIELDS = 9
ROW, COUNT, EXTENT, OTHER_ROW, OTHER_COUNT, SHIFT, OUT_ROW, OTHER_SECOND_ROW, TAIL = range(FIELDS)


class Side(NamedTuple):
    """Where the rows of each example are in one packed array.

    Attributes:
      start: first row, int32.
      length: rows that hold something, int32.
      extent: rows up to the next example, a multiple of 8, int32; those past `length` are written as zeros.
      rows: static, rows of the array; those after the last example belong to none.
    """

    start: Int[Array, " batch"]
    length: Int[Array, " batch"]
    extent: Int[Array, " batch"]
    rows: int


class WorkList(NamedTuple):
    """Work items, longest first if requested.

    Attributes:
      items: int32; the columns are `ROW` (first stationary row), `COUNT` (its rows that hold something, may be 0),
        `EXTENT` (its rows to write), `OTHER_ROW` and `OTHER_COUNT` (streamed rows), `SHIFT` (position in its example of
        the first stationary row, less that of the first streamed one; 0 without a window), `OUT_ROW` (first row of the
        results, of the second stationary array and of its statistics), `OTHER_SECOND_ROW` (first row of the second
        streamed array and of its statistics) and `TAIL` (row of the tails at which the last streamed tile begins; -1
        where that one comes from the array, too). `OUT_ROW` and `OTHER_SECOND_ROW` are `ROW` and `OTHER_ROW` except
        after `share_queries`.
      used: ``[1]`` int32, items in use.
    """

    items: Int[Array, "items fields"]
    used: Int[Array, "1"]


def packed(row_splits: Int[Array, " splits"], lengths: Int[Array, " batch"], rows: int) -> Side:
    """The side of a jagged array of `rows` rows, see `pallas_kernels.jagged`."""
    return Side(row_splits[:-1], lengths, row_splits[1:] - row_splits[:-1], rows)


def dense(batch: int, keys: int) -> Side:
    """The side of ``[batch, keys, ...]`` seen as ``[batch * keys, ...]``."""
    each = jnp.full(batch, keys, jnp.int32)
    return Side(jnp.arange(batch, dtype=jnp.int32) * keys, each, each, batch * keys)


def capacity(side: Side, item_rows: int) -> int:
    """Most items of `item_rows` rows that the rows of this side can need, including those after the last example."""
    segments, blocks, per_item = side.start.shape[0] + 1, side.rows // ROW_ALIGNMENT, item_rows // ROW_ALIGNMENT
    return (blocks + segments * (per_item - 1)) // per_item


def work_list(
    stationary: Side,
    streamed: Side,
    *,
    item_rows: int,
    balance: bool,
    window: tuple[int, int] | None = None,
    ends: Ends | None = None,
) -> WorkList:
    """Cuts the stationary rows of every example into items of `item_rows` rows, the last of them possibly shorter.

    Args:
      stationary: rows to cut; `rows` and every start and extent are multiples of 8.
      streamed: rows of the same examples that each item meets.
      item_rows: rows of an item, a multiple of 8.
      balance: put the examples with the most streamed rows first. Costs a sort of the batch; useless where every
        example streams the same number of rows.
      window: None to stream all rows of the example. ``(below, above)``, with both sides at the same positions: only
        those from `below` positions before the first row of the item to `above` positions after its last one,
        both inclusive; the first is rounded down to a multiple of 8.
      ends: where the examples of `streamed` end and their tails are; None to stream from the array alone.
    """
    stop = stationary.start[-1] + stationary.extent[-1]
    zero = jnp.zeros(1, jnp.int32)
    start = jnp.append(stationary.start, stop)
    length = jnp.append(stationary.length, zero)
    extent = jnp.append(stationary.extent, jnp.int32(stationary.rows) - stop)
    # Nothing streams past rows that hold nothing: they are only written as zeros.
    other_start = jnp.append(streamed.start, zero)
    other_length = jnp.append(streamed.length, zero)
    order = jnp.arange(start.shape[0], dtype=jnp.int32)
    if balance:
        order = jnp.argsort(other_length, descending=True, stable=True)
        start, length, extent, other_start, other_length = (
            x[order] for x in (start, length, extent, other_start, other_length)
        )

    until = jnp.cumsum((extent + (item_rows - 1)) // item_rows, dtype=jnp.int32)
    item = jnp.arange(capacity(stationary, item_rows), dtype=jnp.int32)
    # Items after the last one in use are empty; the kernel does not reach them.
    owner = jnp.minimum(jnp.searchsorted(until, item, side="right", method="compare_all"), start.shape[0] - 1)
    owner = owner.astype(jnp.int32)
    first = (item - jnp.append(zero, until[:-1])[owner]) * item_rows
    count = jnp.clip(length[owner] - first, 0, item_rows)
    low, high = jnp.zeros_like(item), other_length[owner]
    if window is not None:
        # A window wider than the array is cut to its width, which changes nothing and cannot overflow.
        below, above = (min(reach, stationary.rows) for reach in window)
        low = jnp.maximum(first - below, 0) & -ROW_ALIGNMENT
        high = jnp.minimum(first + count + above, high)
    row, other_row = start[owner] + first, other_start[owner] + low
    other_count = jnp.where(count > 0, high - low, 0)
    columns = {
        ROW: row,
        COUNT: count,
        EXTENT: jnp.clip(extent[owner] - first, 0, item_rows),
        OTHER_ROW: other_row,
        OTHER_COUNT: other_count,
        SHIFT: jnp.zeros_like(item) if window is None else first - low,
        OUT_ROW: row,
        OTHER_SECOND_ROW: other_row,
        TAIL: jnp.full_like(item, -1) if ends is None else _tail(ends, order[owner], other_row, other_count),
    }
    return WorkList(jnp.stack([columns[i] for i in range(FIELDS)], axis=1), until[-1:])


def _tail(ends: Ends, example: jax.Array, other_row: jax.Array, other_count: jax.Array) -> jax.Array:
    """The column `TAIL` of items that stream `other_count` rows from `other_row` on."""
    # The segment after the last example streams nothing.
    stop, offset = (jnp.append(x, jnp.zeros(1, jnp.int32))[example] for x in (ends.stop, ends.offset))
    begin = other_row + jnp.maximum(other_count - 1, 0) // ends.block * ends.block
    return jnp.where((other_count > 0) & (begin + ends.block > stop), begin + offset, -1)


def share_queries(work: WorkList, queries: int, *, copies: int, of: int) -> WorkList:
    """`work`, made for `copies` consecutive copies of the same `queries` rows, with column `of` pointing into one copy.

    Args:
      work: its rows of queries are those of ``[examples * copies * queries, ...]``.
      queries: rows of a copy, a multiple of 8.
      copies: how many of them there are.
      of: `ROW` where the queries stay, `OTHER_ROW` where they stream; the array is ``[examples * queries, ...]`` then.
    """
    row = work.items[:, of]
    row = row // (copies * queries) * queries + row % queries
    return work._replace(items=work.items.at[:, of].set(row))


def split(side: Side, parts: int) -> Side:
    """Each example's rows cut into `parts` runs of about equal length, as a side of ``batch * parts`` examples."""
    each = -(-side.length // parts)
    each = (each + (ROW_ALIGNMENT - 1)) & -ROW_ALIGNMENT
    first = each[:, None] * jnp.arange(parts, dtype=jnp.int32)[None, :]
    length = jnp.clip(side.length[:, None] - first, 0, each[:, None])
    start = jnp.minimum(side.start[:, None] + first, side.rows)
    return Side(start.reshape(-1), length.reshape(-1), length.reshape(-1), side.rows)
