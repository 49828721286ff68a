"""The streaming kernel for Hopper: one kernel for the forward pass, for dq, and for dk with dv.

A block has up to two compute warpgroups and one that loads. Each compute warpgroup keeps a stationary tile ``a`` of 64
rows (in the backward passes also ``b``), and the rows of the same example stream past it in tiles ``x`` and ``y``:

    S = a x^T                       scores, [64, block]
    weights, derivative = score(S)
    D = b y^T                       backward only: gradient of the weights; dS = derivative D
    value += weights y              forward: O from (q; k, v).   dk, dv: dV from (k, v; q, dO)
    key   += dS x                   dq: dQ from (q, dO; k, v).   dk, dv: dK from (k, v; q, dO)

So the three passes differ in what stays, what streams, and which sums are kept. Blocks are persistent: each walks its
share of the work list (`pallas_kernels.mosaic.schedule`), and the loading warpgroup runs ahead across items. With
``config.run > 1`` the streamed tiles stay in shared memory for a run of stationary tiles.
"""

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.mosaic import schedule
from pallas_kernels.mosaic.config import Config
from pallas_kernels.mosaic.schedule import WorkList
from pallas_kernels.mosaic.score import Score, in_chunks
from pallas_kernels.mosaic.streaming import for_each_item, store, tiled_smem

TILE_ROWS = 64
"""Stationary rows of a compute warpgroup: the rows of one wgmma."""

COMPUTE_REGISTERS, MEMORY_REGISTERS = 240, 24
"""Of a thread, where there are two units: together no more than `streaming.LAUNCH_REGISTERS` allows."""


def shared_memory(dim: int, itemsize: int, *, backward: bool, outputs: int, config: Config) -> int:
    """Bytes of shared memory that the tiles of a kernel take, barriers aside."""
    stationary = config.units * config.stationary_stages * (2 if backward else 1) * TILE_ROWS
    streamed = 2 * config.stages * config.block
    staging = config.units * outputs * TILE_ROWS
    weights = config.units * TILE_ROWS * config.block * (2 if backward else 1) if config.weights_in_smem else 0
    return itemsize * (dim * (stationary + streamed + staging) + weights)


def attend(
    stationary: tuple[Float[Array, "rows heads dim"], ...],
    streamed: tuple[Float[Array, "other heads dim"], Float[Array, "other heads dim"]],
    work: WorkList,
    *,
    score: Score,
    sums: tuple[str, ...],
    ragged: bool,
    config: Config,
    processors: int,
) -> tuple[Float[Array, "rows heads dim"], ...]:
    """Runs the streaming kernel.

    Args:
      stationary: ``(a,)`` for the forward pass, ``(a, b)`` for the backward passes.
      streamed: ``(x, y)``; rows in gaps hold no NaN (`schedule.clear_gaps`).
      work: items of ``config.units * config.run * TILE_ROWS`` rows.
      score: the score function.
      sums: which sums to keep, of ``"value"`` and ``"key"``, in the order of the results.
      ragged: False if the number of streamed rows is known to be a multiple of the block.
      config: block sizes.
      processors: multiprocessors of the chip, the number of persistent blocks.

    Returns:
      For each of `sums` an array of the shape and dtype of `a`; rows that hold nothing are zero.
    """
    rows, heads, dim = stationary[0].shape
    dtype = stationary[0].dtype
    backward = len(stationary) == 2
    block, stages, units, run = config.block, config.stages, config.units, config.run
    slots = config.stationary_stages
    blocks = max(1, min(processors, work.items.shape[0] * heads))
    swizzle = min(128, dim * dtype.itemsize)
    weight_swizzle = min(128, block * dtype.itemsize)

    def tiled(shape, swizzle=swizzle):
        return tiled_smem(shape, dtype, swizzle)

    def entry(*refs):
        inputs, outputs = refs[: len(refs) - len(sums)], refs[len(refs) - len(sums) :]
        weights_smem = [tiled((units, TILE_ROWS, block), weight_swizzle) for _ in sums if config.weights_in_smem]
        pl.run_scoped(
            lambda *scratch: kernel(inputs, outputs, *scratch),
            [tiled((units, slots, TILE_ROWS, dim)) for _ in stationary],
            [tiled((stages, block, dim)) for _ in streamed],
            [tiled((units, TILE_ROWS, dim)) for _ in sums],
            weights_smem,
            plgpu.Barrier(num_arrivals=len(stationary), num_barriers=units * slots),
            plgpu.Barrier(num_barriers=units * slots),
            [plgpu.Barrier(num_barriers=stages) for _ in streamed],
            [plgpu.Barrier(num_arrivals=units, num_barriers=stages) for _ in streamed],
            plgpu.Barrier(num_arrivals=2) if config.ping_pong and units == 2 else None,
            collective_axes="wg",
        )

    def kernel(inputs, outputs, own_smem, other_smem, out_smem, weight_smem, own_full, own_free, full, free, turn):
        items, used, *operands = inputs
        own, other = operands[: len(stationary)], operands[len(stationary) :]
        wg = lax.axis_index("wg")

        def tiles_of(item):
            """Turns of the item, and streamed tiles of each turn."""
            turns = 1 if run == 1 else pl.cdiv(items[item, schedule.EXTENT], units * TILE_ROWS)
            return turns, lax.div(items[item, schedule.OTHER_COUNT] + (block - 1), jnp.int32(block))

        def over_turns(turns, body, steps):
            return body(0, steps) if run == 1 else lax.fori_loop(0, turns, body, steps)

        def slot_of(step, number):
            return 0 if number == 1 else lax.rem(step, jnp.int32(number))

        @pl.when(wg == units)
        def _load():
            if units == 2:  # with one, the launch gives both as many as there can be
                plgpu.set_max_registers(MEMORY_REGISTERS, action="decrease")

            def load_item(item, head, steps):
                turns, count = tiles_of(item)
                row, other_row = items[item, schedule.ROW], items[item, schedule.OTHER_ROW]

                def load_turn(t, steps):
                    own_step, other_step = steps
                    for unit in range(units):
                        slot = unit * slots + slot_of(own_step, slots)
                        plgpu.barrier_wait(own_free.at[slot])
                        first = pl.multiple_of(row + (t * units + unit) * TILE_ROWS, 8)
                        for gmem, smem in zip(own, own_smem, strict=True):
                            plgpu.copy_gmem_to_smem(
                                gmem.at[pl.ds(first, TILE_ROWS), head],
                                smem.at[unit, slot_of(own_step, slots)],
                                own_full.at[slot],
                            )

                    def load_tile(j, other_step):
                        slot = slot_of(other_step, stages)
                        for i in range(2):
                            plgpu.barrier_wait(free[i].at[slot])
                            plgpu.copy_gmem_to_smem(
                                other[i].at[pl.ds(pl.multiple_of(other_row + j * block, 8), block), head],
                                other_smem[i].at[slot],
                                full[i].at[slot],
                            )
                        return other_step + 1

                    first_turn = jnp.where(t == 0, count, 0) if run > 1 else count
                    return own_step + 1, lax.fori_loop(0, first_turn, load_tile, other_step)

                return over_turns(turns, load_turn, steps)

            for_each_item(used[0], heads, blocks, load_item, (jnp.int32(0), jnp.int32(0)))
            # Every slot has been given free once more than it was filled.
            for slot in range(units * slots):
                plgpu.barrier_wait(own_free.at[slot])
            for slot in range(stages):
                for barrier in free:
                    plgpu.barrier_wait(barrier.at[slot])

        @pl.when(wg < units)
        def _compute():
            if units == 2:
                plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
            for slot in range(slots):
                plgpu.barrier_arrive(own_free.at[wg * slots + slot])
            for slot in range(stages):
                for i in range(2):
                    plgpu.barrier_arrive(free[i].at[slot])

            def take_turn():
                if turn is not None:
                    plgpu.barrier_arrive(turn)
                    plgpu.barrier_wait(turn)

            def scores(a, x):
                """``a x^T`` of two tiles in shared memory; then it is the other warpgroup's turn."""

                def scope(acc):
                    plgpu.wgmma(acc, a, x.transpose((1, 0)))
                    take_turn()
                    return acc[...]

                return pl.run_scoped(scope, plgpu.WGMMAAccumulatorRef((TILE_ROWS, block), jnp.float32))

            def scores_and_gradient(a, x, b, y):
                """``a x^T`` and ``b y^T``."""

                def scope(first, second):
                    plgpu.wgmma(first, a, x.transpose((1, 0)))
                    plgpu.wgmma(second, b, y.transpose((1, 0)))
                    take_turn()
                    return first[...], second[...]

                acc = plgpu.WGMMAAccumulatorRef((TILE_ROWS, block), jnp.float32)
                return pl.run_scoped(scope, acc, acc)

            # The arrays are narrowed chunk by chunk, so that the wide ones die early: registers are what is short.
            def forward(s, polynomial):
                return (score.weights(s, polynomial).astype(dtype),)

            def both(s, d, polynomial):
                weights, derivative = score.backward(s, polynomial)
                return weights.astype(dtype), (derivative * d).astype(dtype)

            def add_product(acc, weights, i, tile):
                if config.weights_in_smem:
                    smem = weight_smem[i].at[wg]
                    smem[...] = weights
                    plgpu.commit_smem()
                    weights = smem
                plgpu.wgmma(acc, weights, tile)

            def compute_item(item, head, steps):
                turns, count = tiles_of(item)
                other_count = items[item, schedule.OTHER_COUNT]

                def masked(j, *arrays):
                    """The arrays with zero in the columns behind the last streamed row."""
                    if not ragged:
                        return arrays
                    left = other_count - j * block

                    def mask():
                        column = plgpu.broadcasted_iota(jnp.int32, (TILE_ROWS, block), 1, layout=plgpu.Layout.WGMMA)
                        return tuple(jnp.where(column < left, x, jnp.zeros((), dtype)) for x in arrays)

                    # In the backward passes a branch costs registers that are not there, so all tiles are masked.
                    return mask() if backward else lax.cond(left < block, mask, lambda: arrays)

                def compute_turn(t, steps):
                    own_step, other_step = steps
                    own_slot = slot_of(own_step, slots)
                    first = (t * units + wg) * TILE_ROWS
                    tiles = [smem.at[wg, own_slot] for smem in own_smem]
                    staging = [smem.at[wg] for smem in out_smem]
                    plgpu.barrier_wait(own_full.at[wg * slots + own_slot])
                    loads = (t == 0) if run > 1 else True
                    last = (t == turns - 1) if run > 1 else True

                    def when(condition, action):
                        action() if condition is True else pl.when(condition)(action)

                    def accumulate(*sums_acc):
                        by_name = dict(zip(sums, sums_acc, strict=True))
                        if turn is not None:
                            pl.when(wg == 1)(take_turn)

                        @pl.loop(0, count)
                        def _step(j):
                            slot = slot_of(other_step + j, stages)
                            x, y = (smem.at[slot] for smem in other_smem)
                            when(loads, lambda: plgpu.barrier_wait(full[0].at[slot]))
                            if backward:
                                when(loads, lambda: plgpu.barrier_wait(full[1].at[slot]))
                                products = scores_and_gradient(tiles[0], x, tiles[1], y)
                                weights, ds = masked(j, *in_chunks(both, config.polynomial, *products))
                            else:
                                s = scores(tiles[0], x)
                                when(last, lambda: plgpu.barrier_arrive(free[0].at[slot]))
                                (weights,) = masked(j, *in_chunks(forward, config.polynomial, s))
                            if turn is not None:
                                plgpu.barrier_arrive(turn)
                            if not backward:
                                when(loads, lambda: plgpu.barrier_wait(full[1].at[slot]))
                            if turn is not None:
                                plgpu.barrier_wait(turn)
                            for i, name in enumerate(sums):
                                operands = (weights, i, y) if name == "value" else (ds, i, x)
                                add_product(by_name[name], *operands)
                            plgpu.wgmma_wait(0)
                            if backward:
                                when(last, lambda: plgpu.barrier_arrive(free[0].at[slot]))
                            when(last, lambda: plgpu.barrier_arrive(free[1].at[slot]))

                        if turn is not None:
                            pl.when(wg == 0)(take_turn)
                        plgpu.barrier_arrive(own_free.at[wg * slots + own_slot])
                        # The store of the turn before has read its staging tile by now.
                        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                        held = items[item, schedule.COUNT] - first
                        row = plgpu.broadcasted_iota(jnp.int32, (TILE_ROWS, dim), 0, layout=plgpu.Layout.WGMMA)
                        for smem, name in zip(staging, sums, strict=True):
                            scale = score.value_scale if name == "value" else score.key_scale
                            value = jnp.where(row < held, by_name[name][...] * scale, 0.0)
                            smem[...] = value.astype(dtype)

                    acc = plgpu.WGMMAAccumulatorRef((TILE_ROWS, dim), jnp.float32)
                    pl.run_scoped(accumulate, *(acc for _ in sums))
                    plgpu.commit_smem()
                    extent = items[item, schedule.EXTENT] - first
                    at = items[item, schedule.ROW] + first
                    for smem, gmem in zip(staging, outputs, strict=True):
                        store(smem, gmem.at[:, head], at, extent)
                    plgpu.commit_smem_to_gmem_group()
                    return own_step + 1, (
                        jnp.where(last, other_step + count, other_step) if run > 1 else other_step + count
                    )

                return over_turns(turns, compute_turn, steps)

            for_each_item(used[0], heads, blocks, compute_item, (jnp.int32(0), jnp.int32(0)))
            plgpu.wait_smem_to_gmem(0)

    return plgpu.kernel(
        entry,
        out_type=(jax.ShapeDtypeStruct((rows, heads, dim), dtype),) * len(sums),
        grid=(blocks,),
        grid_names=("processor",),
        num_threads=units + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )(work.items, work.used, *stationary, *streamed)
