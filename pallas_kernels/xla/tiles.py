"""The tile schedule that the operators share: rows cut into tiles that never cross an example.

A row block is `ROW_ALIGNMENT` consecutive rows; examples start on one, so ``[rows, ...] -> [blocks, 8, ...]`` is a
reshape and a tile is a run of whole blocks. An operator loops over the tiles in use, a chunk of them at a time, gathers
their blocks and writes its result into a buffer of tiles; `untile` turns the buffer back into rows by one gather: rows
of tiles never overlap, so nothing is scattered.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.jagged import ROW_ALIGNMENT

# Scores that a chunk of tiles holds at once. On a CPU they should stay in a core's second-level cache; elsewhere a
# chunk should fill the device, and 64 MB of float32 scores do.
_CHUNK_SCORES_CPU = 2**18
_CHUNK_SCORES = 2**24

_MOST_TILE_ROWS = 32


class Schedule(NamedTuple):
    """Tiles of one packed batch, in the order of their rows; those from `used` on are empty.

    Attributes:
      example: example that the tile belongs to, int32; 0 for an empty tile.
      block: first row block of the tile, int32.
      count: rows of the tile that hold an event, 1 to tile rows; 0 for an empty tile.
      used: scalar int32, tiles with rows.
      slot: for each row block of the batch, its block in a buffer of tiles; out of range where no tile holds it.
    """

    example: Int[Array, " tiles"]
    block: Int[Array, " tiles"]
    count: Int[Array, " tiles"]
    used: Int[Array, ""]
    slot: Int[Array, " blocks"]


def take(values: jax.Array, index: jax.Array) -> jax.Array:
    """``values[index]`` for indices known to be in range, without the test for negative ones."""
    return values.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def add(values: jax.Array, index: jax.Array, update: jax.Array) -> jax.Array:
    """``values.at[index].add(update)`` for indices known to be in range."""
    return values.at[index].add(update, mode="promise_in_bounds", wrap_negative_indices=False)


def quotient(value: jax.Array, divisor: int) -> jax.Array:
    """``value // divisor`` of an int32 that is not negative, without the correction for signs."""
    return jax.lax.div(value, jnp.int32(divisor))


def tile_rows(rows: int, batch: int) -> int:
    """Rows per tile for `rows` packed rows of `batch` examples: 8, 16 or 32, at most the rows per example.

    A tile costs the same however few of its rows are used, so where histories are a few events long, tiles of 32 rows
    would mostly work on nothing.
    """
    size = ROW_ALIGNMENT
    while size < _MOST_TILE_ROWS and 2 * size * batch <= rows:
        size *= 2
    return size


def capacity(rows: int, batch: int, tile_rows: int) -> int:
    """Most tiles that `rows` rows of `batch` examples can need; linear in both."""
    blocks, per_tile = rows // ROW_ALIGNMENT, tile_rows // ROW_ALIGNMENT
    return (blocks + batch * (per_tile - 1)) // per_tile


def chunk_tiles(scores_per_tile: int) -> int:
    """Tiles to work on at once, by the number of scores in one."""
    budget = _CHUNK_SCORES_CPU if jax.default_backend() == "cpu" else _CHUNK_SCORES
    return max(1, budget // scores_per_tile)


def schedule(
    row_splits: Int[Array, " splits"], lengths: Int[Array, " batch"], *, rows: int, tile_rows: int, chunk: int
) -> Schedule:
    """Cuts every example into tiles of `tile_rows` rows, the last of them possibly shorter.

    Args:
      row_splits: first row of each example and the end, multiples of `ROW_ALIGNMENT`.
      lengths: rows of each example.
      rows: capacity of the packed arrays, a multiple of `ROW_ALIGNMENT`.
      tile_rows: rows of a tile, a multiple of `ROW_ALIGNMENT`.
      chunk: the number of tiles in the schedule is a multiple of this.
    """
    batch, per_tile = lengths.shape[0], tile_rows // ROW_ALIGNMENT
    tiles = -(-capacity(rows, batch, tile_rows) // chunk) * chunk
    tiles_each = quotient(lengths + (tile_rows - 1), tile_rows)
    ends = jnp.cumsum(tiles_each, dtype=jnp.int32)
    begins = ends - tiles_each
    used = ends[-1]

    tile = jnp.arange(tiles, dtype=jnp.int32)
    owner = _segment(ends, tiles)
    example = jnp.where(tile < used, owner, 0)
    first = (tile - take(begins, example)) * tile_rows
    count = jnp.where(tile < used, jnp.clip(take(lengths, example) - first, 0, tile_rows), 0)
    block = jnp.where(tile < used, quotient(take(row_splits, example) + first, ROW_ALIGNMENT), 0)

    row_block = jnp.arange(rows // ROW_ALIGNMENT, dtype=jnp.int32)
    first_block = quotient(row_splits, ROW_ALIGNMENT)
    holder = jnp.minimum(_segment(first_block[1:], row_block.shape[0]), batch - 1)
    inside = row_block - take(first_block, holder)
    held = inside * ROW_ALIGNMENT < take(lengths, holder)
    slot = jnp.where(held, take(begins, holder) * per_tile + inside, tiles * per_tile)
    # Without the barrier XLA recomputes all of this inside every gather that uses it.
    return Schedule(*jax.lax.optimization_barrier((example, block, count, used, slot)))


def _segment(ends: Int[Array, " segments"], size: int) -> Int[Array, " size"]:
    """For each of ``0 .. size - 1``, the number of ends at or below it: the segment that holds it."""
    return jnp.cumsum(jnp.zeros(size, jnp.int32).at[ends].add(1, mode="drop"), dtype=jnp.int32)


def to_blocks(values: Float[Array, "rows heads dim"]) -> Float[Array, "blocks width"]:
    """Rows as flat row blocks; a capacity that is not a multiple of the block is padded with zeros."""
    rows = values.shape[0]
    missing = -rows % ROW_ALIGNMENT
    padded = jnp.pad(values, ((0, missing), (0, 0), (0, 0))) if missing else values
    return padded.reshape((rows + missing) // ROW_ALIGNMENT, -1)


def valid(count: Int[Array, " chunk"], tile_rows: int) -> Bool[Array, "chunk tile"]:
    """True for the first `count` rows of each tile."""
    return jnp.arange(tile_rows, dtype=jnp.int32)[None, :] < count[:, None]


def gather(
    blocks: Float[Array, "blocks width"],
    first: Int[Array, " chunk"],
    count: Int[Array, " chunk"],
    *,
    tile_rows: int,
    heads: int,
) -> Float[Array, "chunk heads tile dim"]:
    """Tiles that start at the blocks `first`, heads first; rows from `count` on are zero whatever they held."""
    index = first[:, None] + jnp.arange(tile_rows // ROW_ALIGNMENT, dtype=jnp.int32)[None, :]
    tile = blocks.at[index].get(mode="clip", wrap_negative_indices=False).reshape(first.shape[0], tile_rows, heads, -1)
    return jnp.where(valid(count, tile_rows)[:, :, None, None], tile, jnp.zeros((), tile.dtype)).swapaxes(1, 2)


def store(
    buffer: Float[Array, "tiles tile heads dim"],
    tile: Float[Array, "chunk heads tile dim"],
    first: Int[Array, ""],
    count: Int[Array, " chunk"],
) -> Float[Array, "tiles tile heads dim"]:
    """`buffer` with tiles ``first, first + 1, ...`` replaced, rows from `count` on by zero."""
    mask = valid(count, buffer.shape[1])[:, :, None, None]
    rows = jnp.where(mask, tile.swapaxes(1, 2), jnp.zeros((), tile.dtype)).astype(buffer.dtype)
    return jax.lax.dynamic_update_slice_in_dim(buffer, rows, first, 0)


def untile(
    buffer: Float[Array, "tiles tile heads dim"], slot: Int[Array, " blocks"], rows: int
) -> Float[Array, "rows heads dim"]:
    """The rows that a buffer of tiles holds; rows that no tile holds are zero."""
    _, _, heads, dim = buffer.shape
    blocks = buffer.reshape(-1, ROW_ALIGNMENT * heads * dim)
    return blocks.at[slot].get(mode="fill", fill_value=0, wrap_negative_indices=False).reshape(-1, heads, dim)[:rows]


def cut(values: Float[Array, "rows heads dim"], plan: Schedule, tile_rows: int) -> Float[Array, "tiles heads tile dim"]:
    """All rows as tiles, heads first; rows that hold no event are zero."""
    return gather(to_blocks(values), plan.block, plan.count, tile_rows=tile_rows, heads=values.shape[1])


def join(
    values: Float[Array, "tiles heads tile dim"], plan: Schedule, dtype: jnp.dtype, rows: int
) -> Float[Array, "rows heads dim"]:
    """Tiles with heads first, turned back into rows of `dtype`; rows that hold no event are zero."""
    count, heads, size, dim = values.shape
    buffer = jnp.zeros((count, size, heads, dim), dtype)
    return untile(store(buffer, values, jnp.int32(0), plan.count), plan.slot, rows)
