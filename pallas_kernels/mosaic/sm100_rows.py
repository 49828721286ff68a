"""Stationary rows of the Blackwell kernel: what they may meet, and what is kept for each of them.

A thread of a compute warpgroup reads one row of tensor memory, so what belongs to a row is one register of its thread,
and a sum or a maximum over the row stays within the thread. A vector with one number per stationary row has the layout
`PER_ROW`; one with a number per streamed row, held by all threads, has `PER_COLUMN`.
"""

from typing import NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped

from pallas_kernels.mosaic.score import LOWEST

TILE_ROWS = 128
"""Stationary rows of a unit: the rows of tensor memory."""

TILE = plgpu.Layout.TCGEN05_TMEM_NATIVE
PER_ROW, PER_COLUMN = TILE.reduce(1), TILE.reduce(0)

TOLERANCE = 8.0
"""A running maximum is raised when scores exceed it by more than this, in powers of 2.

Until then weights are up to 256 instead of 1, which costs no precision: they overflow neither in 16 bits nor in their
sum. So sums in tensor memory are seldom rescaled after the first step.
"""

_PER_WARP = plgpu.Layout.TILED(
    plgpu.Tiling(((TILE_ROWS,), (TILE_ROWS // 32,))),
    warp_dims=(plgpu.Replicated(4),),
    lane_dims=(-2,),
    vector_dim=-1,
)
"""Layout of a vector with one number per row, all of which every warp holds."""


def over_columns(vector: jax.Array, columns: int) -> Shaped[Array, "rows columns"]:
    """A vector of layout `PER_ROW`, the same in each column."""
    return lax.broadcast_in_dim(vector, (vector.shape[0], columns), [0])


def over_rows(vector: jax.Array) -> Float[Array, "rows columns"]:
    """A vector of layout `PER_COLUMN`, the same in each row."""
    return lax.broadcast_in_dim(vector, (TILE_ROWS, vector.shape[0]), [1])


def every_row(value: float) -> Float[Array, " rows"]:
    """`value` for each row, float32."""
    return plgpu.layout_cast(jnp.full(TILE_ROWS, value, jnp.float32), PER_ROW)


def reached(first: jax.Array, held: jax.Array, count: jax.Array, block: int, window: tuple[int, int]):
    """Begin and end of the streamed tiles that a unit works on, out of `count`; equal where it works on none.

    Args:
      first: position of the unit's first row, counted from the first streamed row of the item.
      held: its rows that hold something, possibly none and possibly more than `TILE_ROWS`.
      count: streamed tiles of the item.
      block: rows of a streamed tile.
      window: see `streaming.attend`.
    """
    below, above = window
    stop = first + jnp.minimum(held, TILE_ROWS) + above
    begin = jnp.minimum(lax.div(jnp.maximum(first - below, 0), jnp.int32(block)), count)
    end = jnp.minimum(lax.div(jnp.maximum(stop + (block - 1), 0), jnp.int32(block)), count)
    return begin, jnp.where(held > 0, jnp.maximum(begin, end), begin)


class Meeting(NamedTuple):
    """How a unit meets a streamed tile.

    Attributes:
      left: streamed rows of the item from the tile's first on; later ones belong to others.
      ahead: with a window, position of the unit's first row, counted from the tile's first row.
      held: rows of the unit that hold something, None where it does not matter what the others meet.
    """

    left: jax.Array
    ahead: jax.Array | None
    held: jax.Array | None


def is_whole(at: Meeting, block: int, window: tuple[int, int] | None) -> jax.Array:
    """Whether every score of the tile counts."""
    whole = at.left >= block
    if at.held is not None:
        whole &= at.held >= TILE_ROWS
    if window is not None and at.ahead is not None:
        below, above = window
        whole &= (at.ahead + (TILE_ROWS - 1) <= below) & (at.ahead + above >= block - 1)
    return whole


def allowed(at: Meeting, start: int, columns: int, window: tuple[int, int] | None) -> Bool[Array, "rows columns"]:
    """Which scores count, in `columns` columns of the tile from `start` on."""
    column = plgpu.broadcasted_iota(jnp.int32, (TILE_ROWS, columns), 1, layout=TILE)
    stop = at.left - start
    if window is None and at.held is None:
        return column < stop
    # First column, and the one after the last one, of each row.
    row = plgpu.broadcasted_iota(jnp.int32, (TILE_ROWS,), 0, layout=PER_ROW)
    if at.held is not None:
        stop = jnp.where(row < at.held, stop, 0)
    if window is None or at.ahead is None:
        return column < over_columns(stop, columns)
    below, above = window
    position = row + (at.ahead - start)
    stop = jnp.minimum(stop, position + (above + 1))
    return (column >= over_columns(position - below, columns)) & (column < over_columns(stop, columns))


def any_rises(rise: jax.Array, smem) -> Bool[Array, ""]:
    """Whether a number exceeds `TOLERANCE`: one answer for the whole warpgroup.

    Each warp looks at all rows, because reductions over warps share their memory with those of other warpgroups.

    Args:
      rise: float32, of layout `PER_ROW`.
      smem: ``[TILE_ROWS]`` float32 in shared memory, which nothing else uses.
    """
    # Since the reads of the previous step there was the barrier before its weights were handed over.
    smem[...] = rise
    plgpu.commit_smem()
    return plgpu.load(smem, layout=_PER_WARP).max() > TOLERANCE


def log_sums(peak: jax.Array, total: jax.Array) -> Float[Array, " rows"]:
    """Log-sum-exps to base 2 from the running maximum and sum of each row, `LOWEST` where nothing was met."""
    return jnp.where(total > 0, peak + jnp.log2(total), LOWEST)


def store_rows(smem, gmem, row: jax.Array, extent: jax.Array) -> None:
    """Stores the first `extent` numbers of a float32 vector, as `streaming.store` does for tiles.

    A copy begins at a multiple of 128 bytes in shared memory, which is 32 numbers, so the rest after the last 32 goes
    in one piece of 8, 16 or 24.

    Args:
      smem: ``[TILE_ROWS]`` in shared memory.
      gmem: ``[rows]`` in global memory.
      row: index in `gmem` at which the vector begins, a multiple of 8.
      extent: numbers to store, a multiple of 8; those past `TILE_ROWS` are ignored; below 8 nothing is stored.
    """
    aligned = 32

    def copy(size, offset):
        plgpu.copy_smem_to_gmem(
            smem.at[pl.ds(offset if isinstance(offset, int) else pl.multiple_of(offset, aligned), size)],
            gmem.at[pl.ds(pl.multiple_of(row + offset, 8), size)],
            commit_group=False,
        )

    pl.when(extent >= TILE_ROWS)(lambda: copy(TILE_ROWS, 0))
    for size in (aligned, 2 * aligned):
        pl.when((extent > 0) & (extent < TILE_ROWS) & ((extent & size) != 0))(
            lambda size=size: copy(size, extent & (-2 * size))
        )
    for size in range(8, aligned, 8):
        pl.when((extent > 0) & (extent < TILE_ROWS) & ((extent & (aligned - 1)) == size))(
            lambda size=size: copy(size, extent & -aligned)
        )
