"""The block of the personalized FFN as one kernel for Blackwell: gdpa with its two norms and residuals, forward.

It computes what `block_sm90` does, which says how and why. A block of threads takes 128 rows with all of their heads:
one compute warpgroup normalises them, turns scores into weights and writes the results; one warp loads, one issues the
products. The products of a step overlap the activation of the previous step, and those of a head the residual of the
previous head, since scores and sums have two slots each in tensor memory.
"""

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.mosaic import schedule
from pallas_kernels.mosaic.config import Sm100Config
from pallas_kernels.mosaic.plan import slot_of, tiled_smem, tiles_of
from pallas_kernels.mosaic.schedule import WorkList
from pallas_kernels.mosaic.score import Score
from pallas_kernels.mosaic.sm100_plan import chunk_of, takes_polynomial, tensor_barrier
from pallas_kernels.mosaic.sm100_rows import TILE_ROWS
from pallas_kernels.mosaic.streaming import for_each_item, store

ITEM_ROWS = TILE_ROWS
"""Rows of a work item: one tile."""

BLOCK = TILE_ROWS // 2
"""Keys per step: a slot holds keys and values, and at the end a whole tile of rows."""


def shared_memory(heads: int, dim: int, itemsize: int, config: Sm100Config) -> int:
    """Bytes of shared memory that the tiles take, barriers aside."""
    return itemsize * dim * (heads * TILE_ROWS + 2 * config.stages * config.block)


def attend(
    q: Float[Array, "rows heads dim"],
    k: Float[Array, "other heads dim"],
    v: Float[Array, "other heads dim"],
    work: WorkList,
    *,
    score: Score,
    epsilon: float,
    ragged: bool,
    config: Sm100Config,
    processors: int,
) -> tuple[Float[Array, "rows heads dim"], Float[Array, "rows heads dim"]]:
    """Runs the kernel; arguments and results are those of `pallas_kernels.operators.gdpa.block_sm90.attend`.

    Raises:
      ValueError: a config with sizes other than ``block`` 64, ``units`` 1, ``score_stages`` 2 and ``run`` 1.
    """
    if config.block != BLOCK or config.units != 1 or config.score_stages != 2 or config.run != 1:
        raise ValueError(f"{config}: the block kernel needs block={BLOCK}, units=1, score_stages=2, run=1")
    rows, heads, dim = q.shape
    dtype = q.dtype
    block, stages = config.block, config.stages
    blocks = max(1, min(processors, work.items.shape[0]))
    swizzle = min(128, dim * dtype.itemsize)
    chunk = chunk_of(config)
    layout = plgpu.Layout.TCGEN05
    # Columns of a head that are held in registers at once.
    piece = min(dim, 64)
    pieces = [pl.ds(start, piece) for start in range(0, dim, piece)]

    def entry(*refs):
        scores = plgpu.TMEM((TILE_ROWS, block), jnp.float32)
        weights = plgpu.TMEM((TILE_ROWS, block), dtype, packed=True)
        pl.run_scoped(
            lambda *scratch, **barriers: kernel(refs[:-2], refs[-2:], *scratch, **barriers),
            tiled_smem((heads, TILE_ROWS, dim), dtype, swizzle),
            tiled_smem((stages, TILE_ROWS, dim), dtype, swizzle),
            [plgpu.RefUnion(scores, weights)] * 2,
            [plgpu.TMEM((TILE_ROWS, dim), jnp.float32)] * 2,
            own_full=plgpu.Barrier(num_arrivals=heads),
            own_ready=tensor_barrier(),
            own_free=plgpu.Barrier(),
            full=[plgpu.Barrier(num_barriers=stages)] * 2,
            rows_full=plgpu.Barrier(num_arrivals=2, num_barriers=stages),
            free=[tensor_barrier(num_barriers=stages)] * 2,
            score_full=tensor_barrier(num_barriers=2),
            weights_full=tensor_barrier(num_barriers=2),
            score_free=tensor_barrier(num_barriers=2),
            sum_full=tensor_barrier(num_barriers=2),
            sum_free=tensor_barrier(num_barriers=2),
            collective_axes="wg",
        )

    def for_static(slot, body):
        """``body(slot)`` with `slot`, 0 or 1, as a Python integer: tensor memory is addressed statically."""
        for i in range(2):
            pl.when(slot == i)(lambda i=i: body(i))

    def kernel(
        inputs,
        outputs,
        own_smem,
        ring,
        score_tmem,
        sum_tmem,
        *,
        own_full,
        own_ready,
        own_free,
        full,
        rows_full,
        free,
        score_full,
        weights_full,
        score_free,
        sum_full,
        sum_free,
    ):
        *in_memory, q, k, v = inputs
        listed = WorkList(*in_memory)
        out, z_out = outputs
        wg = lax.axis_index("wg")
        halves = [pl.ds(i * block, block) for i in range(2)]  # per slot: keys and values

        def load():
            def load_pair(step, sources, arrived):
                slot = slot_of(step, stages)
                for i, source in enumerate(sources):
                    plgpu.barrier_wait(free[i].at[slot])
                    plgpu.copy_gmem_to_smem(source, ring.at[slot, halves[i]], arrived[i].at[slot])
                return step + 1

            def load_item(item, _, step):
                count = tiles_of(item, block)
                # Multiples of 8, written so that the compiler sees it.
                row, other_row = item[schedule.ROW] & -8, item[schedule.OTHER_ROW] & -8
                plgpu.barrier_wait(own_free)

                @pl.loop(0, heads)
                def _head(head):
                    plgpu.copy_gmem_to_smem(q.at[pl.ds(row, TILE_ROWS), head], own_smem.at[head], own_full)

                def load_head(head, step):
                    def load_tile(j, step):
                        at = pl.ds(other_row + j * block, block)
                        return load_pair(step, (k.at[at, head], v.at[at, head]), full)

                    return lax.fori_loop(0, count, load_tile, step)

                def load_rows(head, step):
                    # Whoever waits at a barrier waits for each of its phases, so these arrive at a separate one.
                    sources = [q.at[pl.ds(row + i * block, block), head] for i in range(2)]
                    return load_pair(step, sources, (rows_full, rows_full))

                return lax.fori_loop(0, heads, load_rows, lax.fori_loop(0, heads, load_head, step))

            columns = (schedule.ROW, schedule.OTHER_COUNT, schedule.OTHER_ROW)
            for_each_item(listed, columns, 1, blocks, load_item, jnp.int32(0))
            # Every slot has been freed once more than it was filled.
            plgpu.barrier_wait(own_free)
            for slot in range(stages):
                for barrier in free:
                    plgpu.barrier_wait(barrier.at[slot])

        def issue():
            def issue_item(item, _, steps):
                step, score_step, head_step = steps
                count = tiles_of(item, block)
                total = heads * count
                plgpu.barrier_wait(own_ready)

                def scores(i):
                    slot, head = slot_of(step + i, stages), lax.div(i, jnp.maximum(count, 1))

                    def into(score_slot):
                        # The weights stored here have to be multiplied first.
                        plgpu.barrier_wait(score_free.at[score_slot])
                        plgpu.barrier_wait(full[0].at[slot])
                        keys = ring.at[slot, halves[0]]
                        plgpu.tcgen05_mma(
                            score_tmem[score_slot][0], own_smem.at[head], keys.transpose((1, 0)), accumulate=False
                        )
                        plgpu.tcgen05_commit_arrive(score_full.at[score_slot])

                    for_static((score_step + i) & 1, into)
                    plgpu.tcgen05_commit_arrive(free[0].at[slot])

                def products(i):
                    slot, head = slot_of(step + i, stages), lax.div(i, jnp.maximum(count, 1))
                    j = i - head * count

                    def out_of(score_slot, sum_slot):
                        pl.when(j == 0)(lambda: plgpu.barrier_wait(sum_free.at[sum_slot]))
                        plgpu.barrier_wait(full[1].at[slot])
                        plgpu.barrier_wait(weights_full.at[score_slot])
                        values = ring.at[slot, halves[1]]
                        plgpu.tcgen05_mma(sum_tmem[sum_slot], score_tmem[score_slot][1], values, accumulate=j > 0)
                        plgpu.tcgen05_commit_arrive(score_free.at[score_slot])
                        pl.when(j == count - 1)(lambda: plgpu.tcgen05_commit_arrive(sum_full.at[sum_slot]))

                    def with_sum(sum_slot):
                        for_static((score_step + i) & 1, lambda score_slot: out_of(score_slot, sum_slot))

                    for_static((head_step + head) & 1, with_sum)
                    plgpu.tcgen05_commit_arrive(free[1].at[slot])

                @pl.loop(0, total + 1)
                def _step(i):
                    # The scores of the next step do not wait for the weights of this step.
                    pl.when(i < total)(lambda: scores(i))
                    pl.when((i > 0) & (total > 0))(lambda: products(i - 1))

                return step + total + heads, score_step + total, head_step + jnp.where(count > 0, heads, 0)

            columns = (schedule.OTHER_COUNT,)
            for_each_item(listed, columns, 1, blocks, issue_item, (jnp.int32(0),) * 3)
            for slot in range(2):
                plgpu.barrier_wait(score_free.at[slot])
                plgpu.barrier_wait(sum_free.at[slot])

        def compute():
            plgpu.barrier_arrive(own_free)
            for slot in range(stages):
                for barrier in free:
                    plgpu.barrier_arrive(barrier.at[slot])
            for slot in range(2):
                plgpu.barrier_arrive(score_free.at[slot])
                plgpu.barrier_arrive(sum_free.at[slot])

            def read(tile, columns):
                return plgpu.load(tile.at[:, columns], layout=layout).astype(jnp.float32)

            def spread(statistic):
                """One number per row, in every column."""
                return lax.broadcast_in_dim(statistic, (TILE_ROWS, piece), [0])

            def zeros():
                return plgpu.layout_cast(jnp.zeros((TILE_ROWS,), jnp.float32), layout.reduce(1))

            def over_heads(body, start):
                """``body(tile of the head, head, carry) -> carry``."""
                return lax.fori_loop(0, heads, lambda head, carry: body(own_smem.at[head], head, carry), start)

            def normalise():
                """LayerNorm of the rows, in place."""

                def sums(function):
                    def add(tile, _, total):
                        for columns in pieces:
                            total = total + function(read(tile, columns)).sum(axis=1)
                        return total

                    return over_heads(add, zeros()) / (heads * dim)

                mean = sums(lambda x: x)
                rate = lax.rsqrt(sums(lambda x: (x - spread(mean)) * (x - spread(mean))) + epsilon)

                def write(tile, _, carry):
                    for columns in pieces:
                        value = (read(tile, columns) - spread(mean)) * spread(rate)
                        tile.at[:, columns][...] = value.astype(dtype)
                    return carry

                over_heads(write, jnp.int32(0))
                plgpu.commit_smem()

            def weigh(left, score_slot):
                """Scores to weights; `left` keys remain from this step on."""
                source, target = score_tmem[score_slot]
                plgpu.barrier_wait(score_full.at[score_slot])
                results = []
                for start in range(0, block, chunk):
                    s = plgpu.async_load_tmem(
                        source.at[:, pl.ds(start, chunk)], layout=plgpu.Layout.TCGEN05_TMEM_NATIVE
                    )
                    weights = score.weights(s, takes_polynomial(config, start)).astype(dtype)
                    # Finishes each chunk before the next: all at once would not fit in the registers.
                    results.append(lax.optimization_barrier(weights))
                plgpu.wait_load_tmem()

                def put(mask):
                    for start, weights in zip(range(0, block, chunk), results, strict=True):
                        plgpu.async_store_tmem(target.at[:, pl.ds(start, chunk)], mask(weights, left - start))

                def masked(weights, left):
                    column = plgpu.broadcasted_iota(
                        jnp.int32, weights.shape, 1, layout=plgpu.Layout.TCGEN05_TMEM_NATIVE
                    )
                    return jnp.where(column < left, weights, jnp.zeros((), dtype))

                if ragged:
                    pl.when(left < block)(lambda: put(masked))
                    pl.when(left >= block)(lambda: put(lambda weights, _: weights))
                else:
                    put(lambda weights, _: weights)
                plgpu.commit_tmem()
                plgpu.barrier_arrive(weights_full.at[score_slot])

            def compute_item(item, _, steps):
                step, score_step, head_step = steps
                count = tiles_of(item, block)
                held, extent = item[schedule.COUNT], item[schedule.EXTENT]

                def inside():
                    return plgpu.broadcasted_iota(jnp.int32, (TILE_ROWS, piece), 0, layout=layout) < held

                plgpu.barrier_wait(own_full)
                normalise()
                plgpu.barrier_arrive(own_ready)

                def residual(tile, summed):
                    """Writes z over q' and sums its squares; ``summed(columns)`` gives the sums of the head."""
                    total = zeros()
                    for columns in pieces:
                        z = read(tile, columns)
                        if summed is not None:
                            z = z + summed(columns) * score.value_scale
                        z = lax.optimization_barrier(jnp.where(inside(), z, 0.0)).astype(dtype)
                        tile.at[:, columns][...] = z
                        z = z.astype(jnp.float32)
                        total = total + (z * z).sum(axis=1)
                    return total

                def attend_head(tile, head, squares):
                    @pl.loop(0, count)
                    def _step(j):
                        left = item[schedule.OTHER_COUNT] - j * block
                        for_static((score_step + head * count + j) & 1, lambda slot: weigh(left, slot))

                    def with_sums(sum_slot):
                        def summed(columns):
                            return plgpu.async_load_tmem(sum_tmem[sum_slot].at[:, columns], layout=layout)

                        plgpu.barrier_wait(sum_full.at[sum_slot])
                        total = residual(tile, summed)
                        plgpu.wait_load_tmem()
                        plgpu.barrier_arrive(sum_free.at[sum_slot])
                        return total

                    def of_slot():
                        return lax.cond((head_step + head) & 1 == 0, lambda: with_sums(0), lambda: with_sums(1))

                    return squares + lax.cond(count > 0, of_slot, lambda: residual(tile, None))

                squares = over_heads(attend_head, zeros())

                def write_rows(gmem):
                    plgpu.commit_smem()

                    @pl.loop(0, heads)
                    def _head(head):
                        store(own_smem.at[head], gmem.at[:, head], item[schedule.ROW], extent)

                    plgpu.commit_smem_to_gmem_group()
                    plgpu.wait_smem_to_gmem(0, wait_read_only=True)

                write_rows(z_out)
                rate = lax.rsqrt(squares / (heads * dim) + epsilon)
                step = step + heads * count

                def add_rows(tile, head, step):
                    slot = slot_of(step, stages)
                    plgpu.barrier_wait(rows_full.at[slot])
                    for columns in pieces:
                        value = read(tile, columns) * spread(rate) + read(ring.at[slot], columns)
                        tile.at[:, columns][...] = lax.optimization_barrier(jnp.where(inside(), value, 0.0)).astype(
                            dtype
                        )
                    for barrier in free:
                        plgpu.barrier_arrive(barrier.at[slot])
                    return step + 1

                step = over_heads(add_rows, step)
                write_rows(out)
                plgpu.barrier_arrive(own_free)
                return step, score_step + heads * count, head_step + jnp.where(count > 0, heads, 0)

            columns = (schedule.ROW, schedule.COUNT, schedule.EXTENT, schedule.OTHER_COUNT)
            for_each_item(listed, columns, 1, blocks, compute_item, (jnp.int32(0),) * 3)
            plgpu.wait_smem_to_gmem(0)

        def serve():
            @plgpu.warp_map
            def _warp(warp):
                pl.when(warp == 0)(load)
                pl.when(warp == 1)(issue)

        lax.switch(wg, [compute, serve])

    return plgpu.kernel(
        entry,
        out_type=(jax.ShapeDtypeStruct((rows, heads, dim), dtype),) * 2,
        grid=(blocks,),
        grid_names=("processor",),
        num_threads=2,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )(work.items, work.used, q, k, v)
