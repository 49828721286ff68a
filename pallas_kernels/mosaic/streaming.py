"""What the streaming kernels of every chip have in common: dealing out the work list, and storing ragged tiles."""

from collections.abc import Callable

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

LAUNCH_REGISTERS = 168
"""Registers of a thread when three warpgroups are launched: 65536 / 384, a multiple of 8.

Warpgroups can pass registers on to each other (`set_max_registers`) but not make new ones: one that asks for more than
the others have given up waits for ever.
"""


def tiled_smem(shape: tuple[int, ...], dtype: jnp.dtype, swizzle: int):
    """Shared memory for tiles as the tensor cores read them; `swizzle` is the bytes of a row that stay together."""
    columns = swizzle // jnp.dtype(dtype).itemsize
    transforms = (
        plgpu.TilingTransform((8, columns)),  # pyright: ignore[reportAbstractUsage]
        plgpu.SwizzleTransform(swizzle),  # pyright: ignore[reportAbstractUsage]
    )
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def for_each_item(used: jax.Array, heads: int, blocks: int, body: Callable, carry):
    """Runs ``body(item, head, carry) -> carry`` for the items of this block, and returns the last `carry`.

    The pairs of item and head are dealt to the blocks in turn. Everything is read here, and so in the branch of the
    calling warps: values from before it would be spilled by warps with few registers.

    Args:
      used: int32, items in use.
      heads: each item is worked on for each head.
      blocks: persistent blocks, the size of the grid axis ``"processor"``.
      body: work on one item.
      carry: what the body carries from item to item.
    """
    processor = lax.axis_index("processor")
    mine = lax.div(used * heads - processor + (blocks - 1), jnp.int32(blocks))

    def deal(turn, carry):
        index = turn * blocks + processor
        return body(lax.div(index, jnp.int32(heads)), lax.rem(index, jnp.int32(heads)), carry)

    return lax.fori_loop(0, mine, deal, carry)


def store(smem, gmem, row: jax.Array, extent: jax.Array) -> None:
    """Stores the first `extent` rows of a tile in pieces of a power of two, because a copy has a fixed size.

    Args:
      smem: ``[tile_rows, columns]`` in shared memory; the rows are a power of two.
      gmem: ``[rows, columns]`` in global memory.
      row: row of `gmem` that the tile begins at, a multiple of 8.
      extent: rows to store, a multiple of 8; those behind `tile_rows` are ignored, and none are stored below 8.
    """
    rows = smem.shape[0]

    @pl.when(extent >= rows)
    def _whole():
        plgpu.copy_smem_to_gmem(smem, gmem.at[pl.ds(pl.multiple_of(row, 8), rows)], commit_group=False)

    for size in (2**i for i in range(3, rows.bit_length() - 1)):
        # The pieces in front of this one are the higher bits of the extent.
        @pl.when((extent > 0) & (extent < rows) & ((extent & size) != 0))
        def _piece(size=size):
            offset = pl.multiple_of(extent & (-2 * size), 8)
            plgpu.copy_smem_to_gmem(
                smem.at[pl.ds(offset, size)],
                gmem.at[pl.ds(pl.multiple_of(row + offset, 8), size)],
                commit_group=False,
            )
