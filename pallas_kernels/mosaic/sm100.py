"""The streaming kernel for Blackwell: one kernel for the forward pass, for dq, and for dk with dv.

It computes what `pallas_kernels.mosaic.sm90` does, with the tensor cores of this chip, which are fed by single threads
and keep scores and sums in tensor memory:

    S = a x^T                       scores, [128, block] float32
    D = b y^T                       backward only: gradient of the weights
    weights, dS = score(S, D)       16 bit, written over S and over D
    value += weights y              forward: O from (q; k, v).   dk, dv: dV from (k, v; q, dO)
    key   += dS x                   dq: dQ from (q, dO; k, v).   dk, dv: dK from (k, v; q, dO)

A unit is a stationary tile of 128 rows with a compute warpgroup, which turns scores into weights and writes the sums
out, and a warp that issues its products. The units share nothing but the streamed tiles, so while one computes weights
the tensor cores work for the other. One more warp loads. Blocks are persistent: each walks its share of the work list
(`pallas_kernels.mosaic.schedule`), and the loading and the issuing warps run ahead across items.
"""

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.mosaic import schedule
from pallas_kernels.mosaic.chips import B200
from pallas_kernels.mosaic.config import Config
from pallas_kernels.mosaic.schedule import WorkList
from pallas_kernels.mosaic.score import Score
from pallas_kernels.mosaic.streaming import for_each_item, store, tiled_smem

TILE_ROWS = 128
"""Stationary rows of a unit: the rows of tensor memory."""

SHARED_MEMORY, TENSOR_MEMORY = B200.shared_memory - 1024, B200.tensor_memory_columns
"""Bytes of shared memory, room for the barriers aside, and columns of tensor memory that a block may have."""

CHUNK = 32
"""Columns of scores that a compute warpgroup holds in registers at once."""

COMPUTE_REGISTERS, MEMORY_REGISTERS = 208, 88
"""Of a thread, where there are two units: together no more than `streaming.LAUNCH_REGISTERS` allows."""


def shared_memory(dim: int, itemsize: int, *, backward: bool, config: Config) -> int:
    """Bytes of shared memory that the tiles of a kernel take, barriers aside."""
    stationary = config.units * config.stationary_stages * (2 if backward else 1) * TILE_ROWS * dim
    streamed = 2 * config.stages * config.block * dim
    staging = config.units * TILE_ROWS * min(dim, 128 // itemsize)
    return itemsize * (stationary + streamed + staging)


def tensor_memory(dim: int, *, backward: bool, outputs: int, config: Config) -> int:
    """Columns of tensor memory that scores and sums take; each holds 128 rows of 32 bits."""
    scores = config.score_stages * config.block * (2 if backward else 1)
    return config.units * (scores + outputs * dim)


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
      stationary: ``(a,)`` for the forward pass, ``(a, b)`` for the backward passes, bfloat16 or float16.
      streamed: ``(x, y)``; rows in gaps hold no NaN (`schedule.clear_gaps`).
      work: items of ``config.units * config.run * TILE_ROWS`` rows.
      score: the score function.
      sums: which sums to keep, of ``"value"`` and ``"key"``, in the order of the results.
      ragged: False if the number of streamed rows is known to be a multiple of the block.
      config: block sizes.
      processors: multiprocessors of the chip, the number of persistent blocks.

    Returns:
      For each of `sums` an array of the shape and dtype of `a`; rows that hold nothing are zero.

    Raises:
      ValueError: the block does not suit, or the config needs more shared or tensor memory than there is.
    """
    rows, heads, dim = stationary[0].shape
    dtype = stationary[0].dtype
    backward = len(stationary) == 2
    block, stages, units, run = config.block, config.stages, config.units, config.run
    own_slots, score_slots = config.stationary_stages, config.score_stages
    swizzle = min(128, dim * dtype.itemsize)
    weight_names = ("value", "key") if backward else ("value",)  # what becomes of S, and of D
    piece = swizzle // dtype.itemsize  # columns written out at once
    chunk = block // 8 if config.polynomial else CHUNK
    starts = range(0, block, chunk)
    blocks = max(1, min(processors, work.items.shape[0] * heads))
    bytes_needed = shared_memory(dim, dtype.itemsize, backward=backward, config=config)
    columns_needed = tensor_memory(dim, backward=backward, outputs=len(sums), config=config)
    if block % 32 or (config.polynomial and block % 64):
        raise ValueError(f"{config}: block must be a multiple of 32, and of 64 for a share of polynomials")
    for needed, limit, what in (
        (bytes_needed, SHARED_MEMORY, "bytes of shared memory"),
        (columns_needed, TENSOR_MEMORY, "columns of tensor memory"),
    ):
        if needed > limit:
            raise ValueError(f"{config} needs {needed} {what} at head width {dim}; there are {limit}")

    def tiled(shape):
        return tiled_smem(shape, dtype, swizzle)

    def tensor_barrier(**arguments):
        return plgpu.Barrier(orders_tensor_core=True, **arguments)

    def entry(*refs):
        inputs, outputs = refs[: len(refs) - len(sums)], refs[len(refs) - len(sums) :]
        scores = plgpu.TMEM((TILE_ROWS, block), jnp.float32)
        weights = plgpu.TMEM((TILE_ROWS, block), dtype, packed=True)
        # The second product takes its weights from where the score was: S becomes the weights, D becomes dS.
        tiles = {name: plgpu.RefUnion(scores, weights) if name in sums else scores for name in weight_names}
        pl.run_scoped(
            lambda *tiles, **barriers: kernel(inputs, outputs, *tiles, **barriers),
            [tiled((units, own_slots, TILE_ROWS, dim)) for _ in stationary],
            [tiled((stages, block, dim)) for _ in streamed],
            tiled((units, TILE_ROWS, piece)),
            [[tiles] * score_slots] * units,
            [{name: plgpu.TMEM((TILE_ROWS, dim), jnp.float32) for name in sums}] * units,
            own_full=plgpu.Barrier(num_arrivals=len(stationary), num_barriers=units * own_slots),
            own_free=tensor_barrier(num_barriers=units * own_slots),
            full=[plgpu.Barrier(num_barriers=stages) for _ in streamed],
            free=[tensor_barrier(num_arrivals=units, num_barriers=stages) for _ in streamed],
            score_full=tensor_barrier(num_barriers=units * score_slots),
            weights_full=tensor_barrier(num_barriers=units * score_slots),
            score_free=None if config.products_in_order else tensor_barrier(num_barriers=units * score_slots),
            sum_full=tensor_barrier(num_barriers=units),
            collective_axes="wg",
        )

    def slot_of(step, number):
        return 0 if number == 1 else lax.rem(step, jnp.int32(number))

    def aligned(row):
        """`row`, a multiple of 8, so that the compiler sees it: `pl.multiple_of` does not exist for a single warp."""
        return row & -8

    def for_static(slot, number, body):
        """``body(slot)`` with `slot` as a Python integer: tensor memory is addressed statically."""
        for i in range(number):
            body(i) if number == 1 else pl.when(slot == i)(lambda i=i: body(i))

    def when(condition, body):
        """`pl.when` that knows what is true at trace time."""
        body() if condition is True else pl.when(condition)(body)

    def kernel(
        inputs,
        outputs,
        own_smem,
        other_smem,
        out_smem,
        score_tmem,
        sum_tmem,
        *,
        own_full,
        own_free,
        full,
        free,
        score_full,
        weights_full,
        score_free,
        sum_full,
    ):
        items, used, *operands = inputs
        own, other = operands[: len(stationary)], operands[len(stationary) :]
        wg = lax.axis_index("wg")

        def score_tiles(unit, slot):
            """Tiles of S and, in the backward pass, D; and by name of the sum, the weights that replace them."""
            tiles = score_tmem[unit][slot]
            scores = [tiles[name][0] if name in sums else tiles[name] for name in weight_names]
            return scores, {name: tiles[name][1] for name in sums}

        def tiles_of(item):
            """Turns of the item, and streamed tiles of each turn."""
            turns = 1 if run == 1 else pl.cdiv(items[item, schedule.EXTENT], units * TILE_ROWS)
            return turns, lax.div(items[item, schedule.OTHER_COUNT] + (block - 1), jnp.int32(block))

        def over_turns(turns, body, steps):
            """``body(turn, first, last, steps) -> steps``: streamed tiles come on the first turn, go on the last."""
            if run == 1:
                return body(0, True, True, steps)
            return lax.fori_loop(0, turns, lambda t, steps: body(t, t == 0, t == turns - 1, steps), steps)

        def load():
            def load_item(item, head, steps):
                turns, count = tiles_of(item)
                row, other_row = items[item, schedule.ROW], items[item, schedule.OTHER_ROW]

                def load_turn(t, first, last, steps):
                    own_step, other_step = steps
                    for unit in range(units):
                        slot = slot_of(own_step, own_slots)
                        barrier = unit * own_slots + slot
                        start = aligned(row + (t * units + unit) * TILE_ROWS)
                        plgpu.barrier_wait(own_free.at[barrier])
                        for gmem, smem in zip(own, own_smem, strict=True):
                            plgpu.copy_gmem_to_smem(
                                gmem.at[pl.ds(start, TILE_ROWS), head], smem.at[unit, slot], own_full.at[barrier]
                            )

                    def load_tile(j, other_step):
                        slot = slot_of(other_step, stages)
                        start = aligned(other_row + j * block)
                        for i in range(2):
                            plgpu.barrier_wait(free[i].at[slot])
                            plgpu.copy_gmem_to_smem(
                                other[i].at[pl.ds(start, block), head], other_smem[i].at[slot], full[i].at[slot]
                            )
                        return other_step + 1

                    tiles = count if first is True else jnp.where(first, count, 0)
                    return own_step + 1, lax.fori_loop(0, tiles, load_tile, other_step)

                # Where nothing streams, the compute warpgroups write zeros and need nobody.
                return lax.cond(count > 0, lambda: over_turns(turns, load_turn, steps), lambda: steps)

            for_each_item(used[0], heads, blocks, load_item, (jnp.int32(0), jnp.int32(0)))
            # Every slot has been given free once more than it was filled.
            for slot in range(units * own_slots):
                plgpu.barrier_wait(own_free.at[slot])
            for slot in range(stages):
                for barrier in free:
                    plgpu.barrier_wait(barrier.at[slot])

        def issue(unit):
            """Issues the products of a unit."""

            def issue_item(item, _, steps):
                turns, count = tiles_of(item)

                def issue_turn(t, first, last, steps):
                    own_step, other_step, score_step = steps
                    own_slot = slot_of(own_step, own_slots)
                    tiles = [smem.at[unit, own_slot] for smem in own_smem]

                    def scores(j):
                        slot = slot_of(other_step + j, stages)
                        x, y = (smem.at[slot] for smem in other_smem)

                        def into(score_slot):
                            barrier = unit * score_slots + score_slot
                            (s, *d), _ = score_tiles(unit, score_slot)

                            def put(target, a, b, replaced):
                                # The weights that lie here have to be multiplied first.
                                if replaced and score_free is not None:
                                    plgpu.barrier_wait(score_free.at[barrier])
                                plgpu.tcgen05_mma(target, a, b.transpose((1, 0)), accumulate=False)

                            when(first, lambda: plgpu.barrier_wait(full[0].at[slot]))
                            put(s, tiles[0], x, "value" in sums)
                            if backward:
                                when(first, lambda: plgpu.barrier_wait(full[1].at[slot]))
                                # S has waited already where both are replaced.
                                put(d[0], tiles[1], y, "value" not in sums)
                            plgpu.tcgen05_commit_arrive(score_full.at[barrier])

                        for_static(slot_of(score_step + j, score_slots), score_slots, into)
                        if "key" not in sums:
                            when(last, lambda: plgpu.tcgen05_commit_arrive(free[0].at[slot]))
                        if "value" not in sums:
                            when(last, lambda: plgpu.tcgen05_commit_arrive(free[1].at[slot]))

                        @pl.when(j == count - 1)
                        def _free():
                            plgpu.tcgen05_commit_arrive(own_free.at[unit * own_slots + own_slot])

                    def products(j):
                        slot = slot_of(other_step + j, stages)
                        operand = {"value": 1, "key": 0}  # y and x
                        if not backward:
                            when(first, lambda: plgpu.barrier_wait(full[1].at[slot]))

                        def out_of(score_slot):
                            barrier = unit * score_slots + score_slot
                            # These weights come after the sums of the turn before were read by the same warpgroup.
                            plgpu.barrier_wait(weights_full.at[barrier])
                            _, weights = score_tiles(unit, score_slot)
                            for name in sums:
                                tile = other_smem[operand[name]].at[slot]
                                plgpu.tcgen05_mma(sum_tmem[unit][name], weights[name], tile, accumulate=j > 0)
                            if score_free is not None:
                                plgpu.tcgen05_commit_arrive(score_free.at[barrier])

                        for_static(slot_of(score_step + j, score_slots), score_slots, out_of)
                        for name in sums:
                            barrier = free[operand[name]].at[slot]
                            when(last, lambda barrier=barrier: plgpu.tcgen05_commit_arrive(barrier))

                        @pl.when(j == count - 1)
                        def _full():
                            plgpu.tcgen05_commit_arrive(sum_full.at[unit])

                    def work():
                        @pl.loop(0, count + 1)
                        def _step(j):
                            # With two slots the scores of the next step do not wait for the weights of this one.
                            if score_slots == 2:
                                pl.when(j < count)(lambda: scores(j))
                            pl.when(j > 0)(lambda: products(j - 1))
                            if score_slots == 1:
                                pl.when(j < count)(lambda: scores(j))

                    def pass_by():
                        """Does for the streamed tiles what a unit with rows does."""

                        @pl.loop(0, count)
                        def _step(j):
                            slot = slot_of(other_step + j, stages)
                            for i in range(2):
                                when(first, lambda i=i: plgpu.barrier_wait(full[i].at[slot]))
                                when(last, lambda i=i: plgpu.tcgen05_commit_arrive(free[i].at[slot]))

                        plgpu.tcgen05_commit_arrive(own_free.at[unit * own_slots + own_slot])

                    plgpu.barrier_wait(own_full.at[unit * own_slots + own_slot])
                    active = (t * units + unit) * TILE_ROWS < items[item, schedule.COUNT]
                    lax.cond(active, work, pass_by)
                    done = jnp.where(active, count, 0)
                    return own_step + 1, jnp.where(last, other_step + count, other_step), score_step + done

                return lax.cond(count > 0, lambda: over_turns(turns, issue_turn, steps), lambda: steps)

            for_each_item(used[0], heads, blocks, issue_item, (jnp.int32(0),) * 3)
            if score_free is not None:
                for slot in range(score_slots):
                    plgpu.barrier_wait(score_free.at[unit * score_slots + slot])

        def compute(unit):
            """Turns scores into weights, and writes the sums out."""
            for slot in range(own_slots):
                plgpu.barrier_arrive(own_free.at[unit * own_slots + slot])
            for slot in range(stages):
                for barrier in free:
                    plgpu.barrier_arrive(barrier.at[slot])
            if score_free is not None:
                for slot in range(score_slots):
                    plgpu.barrier_arrive(score_free.at[unit * score_slots + slot])

            def compute_item(item, head, score_step):
                turns, count = tiles_of(item)
                other_count = items[item, schedule.OTHER_COUNT]

                def weigh(left, score_slot):
                    """Scores to weights; `left` streamed rows are left from this step on."""
                    barrier = unit * score_slots + score_slot
                    sources, targets = score_tiles(unit, score_slot)
                    plgpu.barrier_wait(score_full.at[barrier])
                    results = []
                    for start in starts:
                        # The chunks with the polynomial lie between the others, so that both kinds of units are busy.
                        share = [(start + add) * config.polynomial // block for add in (0, chunk)]
                        polynomial = share[0] < share[1]

                        def part(source, start=start):
                            columns = pl.ds(start, chunk)
                            return plgpu.async_load_tmem(source.at[:, columns], layout=plgpu.Layout.TCGEN05_TMEM_NATIVE)

                        if backward:
                            weights, derivative = score.backward(part(sources[0]), polynomial)
                            result = {"value": weights, "key": derivative * part(sources[1])}
                        else:
                            result = {"value": score.weights(part(sources[0]), polynomial)}
                        result = {name: result[name].astype(dtype) for name in sums}
                        # Finishes a chunk before the next one: all of them at once do not fit in the registers.
                        results.append(lax.optimization_barrier(result))
                    # The weights lie where the scores were, so all of those are read first.
                    plgpu.wait_load_tmem()

                    def put(mask):
                        for start, result in zip(starts, results, strict=True):
                            for name in sums:
                                columns = pl.ds(start, chunk)
                                plgpu.async_store_tmem(targets[name].at[:, columns], mask(result[name], left - start))

                    if ragged:
                        pl.when(left < block)(lambda: put(masked))
                    when(left >= block if ragged else True, lambda: put(lambda weights, _: weights))
                    plgpu.commit_tmem()
                    plgpu.barrier_arrive(weights_full.at[barrier])

                def masked(weights, left):
                    """`weights` with zero in the columns from `left` on."""
                    column = plgpu.broadcasted_iota(
                        jnp.int32, weights.shape, 1, layout=plgpu.Layout.TCGEN05_TMEM_NATIVE
                    )
                    return jnp.where(column < left, weights, jnp.zeros((), dtype))

                def compute_turn(t, first, last, score_step):
                    start = (t * units + unit) * TILE_ROWS
                    held, extent = items[item, schedule.COUNT] - start, items[item, schedule.EXTENT] - start
                    # A unit without rows, or whose rows meet none, only writes zeros.
                    steps = jnp.where(held > 0, count, 0)

                    @pl.loop(0, steps)
                    def _step(j):
                        for_static(
                            slot_of(score_step + j, score_slots),
                            score_slots,
                            lambda slot: weigh(other_count - j * block, slot),
                        )

                    pl.when(steps > 0)(lambda: plgpu.barrier_wait(sum_full.at[unit]))
                    for i, name in enumerate(sums):
                        scale = score.value_scale if name == "value" else score.key_scale
                        for column in range(0, dim, piece):
                            columns = pl.ds(column, piece)
                            # The copy before has read the staging tile.
                            plgpu.wait_smem_to_gmem(0, wait_read_only=True)

                            @pl.when(steps > 0)
                            def _sum(name=name, columns=columns, scale=scale):
                                layout = plgpu.Layout.TCGEN05
                                value = plgpu.async_load_tmem(sum_tmem[unit][name].at[:, columns], layout=layout)
                                row = plgpu.broadcasted_iota(jnp.int32, (TILE_ROWS, piece), 0, layout=layout)
                                out_smem.at[unit][...] = jnp.where(row < held, value * scale, 0.0).astype(dtype)

                            @pl.when(steps == 0)
                            def _zero():
                                # The sums were never begun, and may hold NaN.
                                zero = jnp.zeros((TILE_ROWS, piece), dtype)
                                out_smem.at[unit][...] = plgpu.layout_cast(zero, plgpu.Layout.TCGEN05)

                            plgpu.commit_smem()
                            at = items[item, schedule.ROW] + start
                            store(out_smem.at[unit], outputs[i].at[:, head, columns], at, extent)
                            plgpu.commit_smem_to_gmem_group()

                    return score_step + steps

                return over_turns(turns, compute_turn, score_step)

            for_each_item(used[0], heads, blocks, compute_item, jnp.int32(0))
            plgpu.wait_smem_to_gmem(0)

        def serve():
            """The work of the warpgroup without a unit."""
            if units == 2:
                plgpu.set_max_registers(MEMORY_REGISTERS, action="decrease")

            @plgpu.warp_map
            def _warp(warp):
                pl.when(warp == 0)(load)
                for unit in range(units):
                    pl.when(warp == unit + 1)(lambda unit=unit: issue(unit))

        def compute_in_warpgroup(unit):
            if units == 2:
                plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
            compute(unit)

        # One switch and not a condition for each warpgroup: nothing then is kept, and spilled, for the next condition.
        lax.switch(wg, [lambda unit=unit: compute_in_warpgroup(unit) for unit in range(units)] + [serve])

    return plgpu.kernel(
        entry,
        out_type=(jax.ShapeDtypeStruct((rows, heads, dim), dtype),) * len(sums),
        grid=(blocks,),
        grid_names=("processor",),
        num_threads=units + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )(work.items, work.used, *stationary, *streamed)
