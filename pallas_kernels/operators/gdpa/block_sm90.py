"""The block of the personalized FFN as one kernel for Hopper: gdpa with its two norms and residuals, forward.

    q' = LayerNorm(q);   z = Act(pre_scale q' k^T) v post_scale + q';   out = RMSNorm(z) + q

The norms run over all heads, so a block of threads takes a tile of rows with all of their heads: it normalises the tile
in place in shared memory, goes through the heads as `pallas_kernels.mosaic.sm90` goes through the keys of one, and
writes z of a head over its q'. After the last head the norm of the rows is known. The rows themselves then come once
more, from the second-level cache, through the slots of the keys and values, and out is written over z.

So a row is read from memory once and written once (and z once, for a backward pass), where separate norms read it five
times and write it three times. In exchange the keys and values of all heads stream past every tile of rows, from the
second-level cache.
"""

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.mosaic import schedule
from pallas_kernels.mosaic.config import Sm90Config
from pallas_kernels.mosaic.plan import slot_of, tiled_smem, tiles_of
from pallas_kernels.mosaic.schedule import WorkList
from pallas_kernels.mosaic.score import Score, in_chunks
from pallas_kernels.mosaic.sm90 import COMPUTE_REGISTERS, MEMORY_REGISTERS, TILE_ROWS
from pallas_kernels.mosaic.streaming import for_each_item, store

ITEM_ROWS = 2 * TILE_ROWS
"""Rows of a work item: a tile for each of the two compute warpgroups."""


def shared_memory(heads: int, dim: int, itemsize: int, config: Sm90Config) -> int:
    """Bytes of shared memory that the tiles take, barriers aside."""
    streamed = 2 * config.stages * config.block
    weights = 2 * TILE_ROWS * config.block if config.weights_in_smem else 0
    return itemsize * (dim * (heads * ITEM_ROWS + streamed) + weights)


def attend(
    q: Float[Array, "rows heads dim"],
    k: Float[Array, "other heads dim"],
    v: Float[Array, "other heads dim"],
    work: WorkList,
    *,
    score: Score,
    epsilon: float,
    ragged: bool,
    config: Sm90Config,
    processors: int,
) -> tuple[Float[Array, "rows heads dim"], Float[Array, "rows heads dim"]]:
    """Runs the kernel.

    Args:
      q: rows before the block, bfloat16 or float16.
      k: keys; rows in gaps hold no NaN (`pallas_kernels.jagged.zero_gaps`).
      v: values, likewise.
      work: items of `ITEM_ROWS` rows.
      score: the score function.
      epsilon: added to the variance and to the mean square.
      ragged: False if the number of keys is known to be a multiple of the block.
      config: block sizes; ``block`` is `TILE_ROWS` and ``units`` 2, since the rows return through the keys' slots.
      processors: multiprocessors of the chip, the number of persistent blocks.

    Returns:
      out and z; rows that hold nothing are zero.

    Raises:
      ValueError: a config with other sizes.
    """
    if config.block != TILE_ROWS or config.units != 2 or config.run != 1:
        raise ValueError(f"{config}: the block kernel needs block={TILE_ROWS}, units=2, run=1")
    rows, heads, dim = q.shape
    dtype = q.dtype
    block, stages = config.block, config.stages
    blocks = max(1, min(processors, work.items.shape[0]))
    swizzle = min(128, dim * dtype.itemsize)
    weight_swizzle = min(128, block * dtype.itemsize)
    by_row = plgpu.Layout.WGMMA.reduce(1)

    def entry(*refs):
        pl.run_scoped(
            lambda *scratch: kernel(refs[:-2], refs[-2:], *scratch),
            tiled_smem((2, heads, TILE_ROWS, dim), dtype, swizzle),
            tiled_smem((2, stages, block, dim), dtype, swizzle),
            tiled_smem((2, TILE_ROWS, block), dtype, weight_swizzle) if config.weights_in_smem else None,
            plgpu.Barrier(num_arrivals=heads, num_barriers=2),
            plgpu.Barrier(num_barriers=2),
            plgpu.Barrier(num_barriers=2 * stages),
            plgpu.Barrier(num_arrivals=2, num_barriers=2 * stages),
            collective_axes="wg",
        )

    def kernel(inputs, outputs, own_smem, other_smem, weight_smem, own_full, own_free, full, free):
        *in_memory, q, k, v = inputs
        listed = WorkList(*in_memory)
        out, z_out = outputs
        wg = lax.axis_index("wg")

        @pl.when(wg == 2)
        def _load():
            plgpu.set_max_registers(MEMORY_REGISTERS, action="decrease")

            def load_pair(step, sources):
                slot = slot_of(step, stages)
                for i, source in enumerate(sources):
                    plgpu.barrier_wait(free.at[i * stages + slot])
                    plgpu.copy_gmem_to_smem(source, other_smem.at[i, slot], full.at[i * stages + slot])
                return step + 1

            def load_item(item, _, step):
                count = tiles_of(item, block)
                row, other_row = item[schedule.ROW], item[schedule.OTHER_ROW]

                def own_rows(unit, head):
                    return q.at[pl.ds(pl.multiple_of(row + unit * TILE_ROWS, 8), TILE_ROWS), head]

                for unit in range(2):
                    plgpu.barrier_wait(own_free.at[unit])

                    @pl.loop(0, heads)
                    def _head(head, unit=unit):
                        plgpu.copy_gmem_to_smem(own_rows(unit, head), own_smem.at[unit, head], own_full.at[unit])

                def load_head(head, step):
                    def load_tile(j, step):
                        at = pl.ds(pl.multiple_of(other_row + j * block, 8), block)
                        return load_pair(step, (k.at[at, head], v.at[at, head]))

                    return lax.fori_loop(0, count, load_tile, step)

                step = lax.fori_loop(0, heads, load_head, step)
                return lax.fori_loop(
                    0, heads, lambda head, step: load_pair(step, [own_rows(unit, head) for unit in range(2)]), step
                )

            columns = (schedule.ROW, schedule.OTHER_COUNT, schedule.OTHER_ROW)
            for_each_item(listed, columns, 1, blocks, load_item, jnp.int32(0))
            # Every slot has been freed once more than it was filled.
            for unit in range(2):
                plgpu.barrier_wait(own_free.at[unit])
            for slot in range(2 * stages):
                plgpu.barrier_wait(free.at[slot])

        @pl.when(wg < 2)
        def _compute():
            plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
            plgpu.barrier_arrive(own_free.at[wg])
            for slot in range(2 * stages):
                plgpu.barrier_arrive(free.at[slot])

            def spread(statistic):
                """One number per row, in every column."""
                return lax.broadcast_in_dim(statistic, (TILE_ROWS, dim), [0])

            def zeros():
                return plgpu.layout_cast(jnp.zeros((TILE_ROWS,), jnp.float32), by_row)

            def over_heads(body, start):
                """``body(tile of the head, head, carry) -> carry``."""
                return lax.fori_loop(0, heads, lambda head, carry: body(own_smem.at[wg, head], head, carry), start)

            def normalise():
                """LayerNorm of the rows, in place."""
                mean = over_heads(lambda tile, _, total: total + tile[...].astype(jnp.float32).sum(axis=1), zeros())
                mean = mean / (heads * dim)

                def deviation(tile, _, total):
                    centred = tile[...].astype(jnp.float32) - spread(mean)
                    return total + (centred * centred).sum(axis=1)

                rate = lax.rsqrt(over_heads(deviation, zeros()) / (heads * dim) + epsilon)

                def write(tile, _, carry):
                    tile[...] = ((tile[...].astype(jnp.float32) - spread(mean)) * spread(rate)).astype(dtype)
                    return carry

                over_heads(write, jnp.int32(0))
                plgpu.commit_smem()

            def scores(a, x):
                def scope(acc):
                    plgpu.wgmma(acc, a, x.transpose((1, 0)))
                    return acc[...]

                return pl.run_scoped(scope, plgpu.WGMMAAccumulatorRef((TILE_ROWS, block), jnp.float32))

            def weigh(s, polynomial):
                return (score.weights(s, polynomial).astype(dtype),)

            def masked(weights, left):
                """`weights` with zero in the columns after the last key."""
                if not ragged:
                    return weights

                def mask():
                    column = plgpu.broadcasted_iota(jnp.int32, (TILE_ROWS, block), 1, layout=plgpu.Layout.WGMMA)
                    return jnp.where(column < left, weights, jnp.zeros((), dtype))

                return lax.cond(left < block, mask, lambda: weights)

            def compute_item(item, _, step):
                count, first = tiles_of(item, block), wg * TILE_ROWS
                held, extent = item[schedule.COUNT] - first, item[schedule.EXTENT] - first
                at = item[schedule.ROW] + first

                def inside():
                    return plgpu.broadcasted_iota(jnp.int32, (TILE_ROWS, dim), 0, layout=plgpu.Layout.WGMMA) < held

                plgpu.barrier_wait(own_full.at[wg])
                normalise()

                def attend_head(tile, head, carry):
                    step, squares = carry

                    def accumulate(acc):
                        @pl.loop(0, count)
                        def _step(j):
                            slot = slot_of(step + j, stages)
                            plgpu.barrier_wait(full.at[slot])
                            s = scores(tile, other_smem.at[0, slot])
                            plgpu.barrier_arrive(free.at[slot])
                            (weights,) = in_chunks(weigh, config.polynomial, s)
                            weights = masked(weights, item[schedule.OTHER_COUNT] - j * block)
                            if weight_smem is not None:
                                smem = weight_smem.at[wg]
                                smem[...] = weights
                                plgpu.commit_smem()
                                weights = smem
                            plgpu.barrier_wait(full.at[stages + slot])
                            plgpu.wgmma(acc, weights, other_smem.at[1, slot])
                            plgpu.wgmma_wait(0)
                            plgpu.barrier_arrive(free.at[stages + slot])

                        z = acc[...] * score.value_scale + tile[...].astype(jnp.float32)
                        z = lax.optimization_barrier(jnp.where(inside(), z, 0.0)).astype(dtype)
                        tile[...] = z
                        z = z.astype(jnp.float32)
                        return squares + (z * z).sum(axis=1)

                    return step + count, pl.run_scoped(
                        accumulate, plgpu.WGMMAAccumulatorRef((TILE_ROWS, dim), jnp.float32)
                    )

                step, squares = over_heads(attend_head, (step, zeros()))

                def write_rows(gmem):
                    plgpu.commit_smem()

                    @pl.loop(0, heads)
                    def _head(head):
                        store(own_smem.at[wg, head], gmem.at[:, head], at, extent)

                    plgpu.commit_smem_to_gmem_group()
                    plgpu.wait_smem_to_gmem(0, wait_read_only=True)

                write_rows(z_out)
                rate = lax.rsqrt(squares / (heads * dim) + epsilon)

                def add_rows(tile, head, step):
                    slot = slot_of(step, stages)
                    for i in range(2):
                        plgpu.barrier_wait(full.at[i * stages + slot])
                    rows = other_smem.at[wg, slot][...].astype(jnp.float32)
                    value = tile[...].astype(jnp.float32) * spread(rate) + rows
                    for i in range(2):
                        plgpu.barrier_arrive(free.at[i * stages + slot])
                    tile[...] = lax.optimization_barrier(jnp.where(inside(), value, 0.0)).astype(dtype)
                    return step + 1

                step = over_heads(add_rows, step)
                write_rows(out)
                plgpu.barrier_arrive(own_free.at[wg])
                return step

            columns = (schedule.ROW, schedule.COUNT, schedule.EXTENT, schedule.OTHER_COUNT)
            for_each_item(listed, columns, 1, blocks, compute_item, jnp.int32(0))
            plgpu.wait_smem_to_gmem(0)

    return plgpu.kernel(
        entry,
        out_type=(jax.ShapeDtypeStruct((rows, heads, dim), dtype),) * 2,
        grid=(blocks,),
        grid_names=("processor",),
        num_threads=3,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )(work.items, work.used, q, k, v)
