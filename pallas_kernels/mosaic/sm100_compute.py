"""The compute warpgroups of the Blackwell kernel: scores to weights, running softmax, and writing the sums out."""

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.mosaic import schedule, sm100_rows
from pallas_kernels.mosaic.score import LOWEST
from pallas_kernels.mosaic.sm100_plan import CHUNK, Plan, Refs, for_static, slot_of, when
from pallas_kernels.mosaic.sm100_rows import TILE_ROWS
from pallas_kernels.mosaic.streaming import for_each_item, store


def compute(unit: int, plan: Plan, refs: Refs) -> None:
    """The work of a unit's compute warpgroup."""
    config, score, sums, window = plan.config, plan.score, plan.sums, plan.window
    block, stages, units = config.block, config.stages, config.units
    own_slots, score_slots, chunk = config.stationary_stages, config.score_stages, plan.chunk
    starts, group, online = range(0, block, chunk), plan.group, plan.online
    exponent = 1.0 if score.online is None else score.online
    items, row_smem, out_smem, sum_tmem = refs.items, refs.row_smem, refs.out_smem, refs.sum_tmem
    own_full, own_free, full, free, sum_full = refs.own_full, refs.own_free, refs.full, refs.free, refs.sum_full
    score_full, weights_full, score_free = refs.score_full, refs.weights_full, refs.score_free

    for slot in range(own_slots):
        for _ in range(plan.own_readers):
            plgpu.barrier_arrive(own_free.at[unit * own_slots + slot])
    for slot in range(stages):
        for barrier, readers in zip(free, plan.other_readers, strict=True):
            for _ in range(readers):
                plgpu.barrier_arrive(barrier.at[slot])
    if score_free is not None:
        for slot in range(score_slots):
            plgpu.barrier_arrive(score_free.at[unit * score_slots + slot])

    def part(source, start):
        return plgpu.async_load_tmem(source.at[:, pl.ds(start, chunk)], layout=sm100_rows.TILE)

    def weigh(at, score_slot, given):
        """Scores to weights; `at` a `sm100_rows.Meeting`, `given` from start of a chunk to its statistics."""
        barrier = unit * score_slots + score_slot
        sources, targets = plan.score_tiles(refs.score_tmem, unit, score_slot)
        plgpu.barrier_wait(score_full.at[barrier])
        results = []
        for start in starts:
            # The chunks with the polynomial lie between the others, so that both kinds of units are busy.
            shares = [(start + add) * config.polynomial // block for add in (0, chunk)]
            polynomial = shares[0] < shares[1]
            s = part(sources[0], start)
            if plan.backward:
                weights, derivative = score.backward(s, part(sources[1], start), polynomial, given(start))
                result = {"value": weights, "key": derivative}
            else:
                result = {"value": score.weights(s, polynomial)}
            result = {name: result[name].astype(plan.dtype) for name in sums}
            # Finishes a chunk before the next one: all of them at once do not fit in the registers.
            results.append(lax.optimization_barrier(result))
        # The weights lie where the scores were, so all of those are read first.
        plgpu.wait_load_tmem()

        def put(mask):
            for start, result in zip(starts, results, strict=True):
                for name in sums:
                    plgpu.async_store_tmem(targets[name].at[:, pl.ds(start, chunk)], mask(result[name], start))

        def masked(weights, start):
            inside = sm100_rows.allowed(at, start, chunk, window)
            return jnp.where(inside, weights, jnp.zeros((), plan.dtype))

        whole = sm100_rows.is_whole(at, block, window) if plan.masks else True
        if plan.masks:
            pl.when(jnp.logical_not(whole))(lambda: put(masked))
        when(whole, lambda: put(lambda weights, _: weights))
        plgpu.commit_tmem()
        plgpu.barrier_arrive(weights_full.at[barrier])

    def weigh_online(at, score_slot, begun, kept):
        """As `weigh`, for a softmax; keeps maximum and sum of each row, and rescales the sums if `begun`."""
        barrier = unit * score_slots + score_slot
        (source,), targets = plan.score_tiles(refs.score_tmem, unit, score_slot)
        sums_of_values = sum_tmem[unit]["value"]
        before, total = kept
        plgpu.barrier_wait(score_full.at[barrier])

        # The mask goes into tensor memory, so that what follows need not be there twice.
        @pl.when(jnp.logical_not(sm100_rows.is_whole(at, block, window)))
        def _mask():
            for start in starts:
                inside = sm100_rows.allowed(at, start, chunk, window)
                masked = jnp.where(inside, part(source, start), -jnp.inf)
                plgpu.wait_load_tmem()
                plgpu.async_store_tmem(source.at[:, pl.ds(start, chunk)], masked)
            plgpu.commit_tmem()

        highest = before
        for start in starts:
            highest = jnp.maximum(highest, part(source, start).max(axis=1) * exponent)
        rises = sm100_rows.any_rises(highest - before, row_smem.at[unit])
        peak = lax.cond(rises, lambda: highest, lambda: before)
        factor = jnp.exp2(before - peak)
        total, results = total * factor, []
        for start in starts:
            weights = jnp.exp2(part(source, start) * exponent - sm100_rows.over_columns(peak, chunk))
            total += weights.sum(axis=1)
            total, result = lax.optimization_barrier((total, weights.astype(plan.dtype)))
            results.append(result)
        plgpu.wait_load_tmem()
        for start, result in zip(starts, results, strict=True):
            plgpu.async_store_tmem(targets["value"].at[:, pl.ds(start, chunk)], result)

        # The product with the weights of the step before has to be in the sums.
        pl.when(begun)(lambda: plgpu.barrier_wait(sum_full.at[unit]))

        @pl.when(begun & rises)
        def _rescale():
            for start in range(0, plan.dim, CHUNK):
                columns = sums_of_values.at[:, pl.ds(start, CHUNK)]
                value = plgpu.async_load_tmem(columns, layout=sm100_rows.TILE)
                value = value * sm100_rows.over_columns(factor, CHUNK)
                plgpu.wait_load_tmem()
                plgpu.async_store_tmem(columns, value)

        plgpu.commit_tmem()
        plgpu.barrier_arrive(weights_full.at[barrier])
        return peak, total

    def compute_item(item, head, steps):
        turns, count = plan.tiles_of(items, item)
        other_count = items[item, schedule.OTHER_COUNT]

        def compute_turn(t, first, last, steps):
            score_step, own_step, other_step = steps
            start = (t * units + unit) * TILE_ROWS
            held, extent = items[item, schedule.COUNT] - start, items[item, schedule.EXTENT] - start
            # A unit without rows, or whose rows meet none, only writes zeros.
            active, begin, end = plan.tiles_for(items, item, start, count)
            tiles = jnp.where(active, count if window is None else end - begin, 0)
            own_numbers = []
            if plan.own_statistics:
                slot = slot_of(own_step, own_slots)
                barrier = unit * own_slots + slot

                def read():
                    plgpu.barrier_wait(own_full.at[barrier])
                    found = [plgpu.load(smem.at[unit, slot], layout=sm100_rows.PER_ROW) for smem in refs.number_smem]
                    # The next copy comes into the place after these reads.
                    plgpu.commit_smem()
                    plgpu.barrier_arrive(own_free.at[barrier])
                    return found

                own_numbers = lax.cond(count > 0, read, lambda: [sm100_rows.every_row(0.0) for _ in refs.number_smem])
                own_step += jnp.where(count > 0, 1, 0)

            def pass_by(first_step, begin, end):
                """Gives the statistics of streamed tiles free that the unit does not work on."""

                @pl.loop(begin, end)
                def _step(j):
                    slot = slot_of(first_step + j, stages)
                    plgpu.barrier_wait(full[1].at[slot])
                    plgpu.barrier_arrive(free[1].at[slot])

            def compute_head(i, kept):
                first_step = other_step if group == 1 or other_step is None else other_step + i * count
                first_score = score_step if group == 1 else score_step + i * tiles
                if plan.other_statistics:
                    pass_by(first_step, 0, begin)

                def compute_tile(k, kept):
                    j = k if window is None else begin + k
                    # In a softmax the weights of rows that hold nothing may be infinite, or set the maximum.
                    at = sm100_rows.Meeting(
                        left=other_count - j * block,
                        ahead=None if window is None else start + items[item, schedule.SHIFT] - j * block,
                        held=held if plan.softmax else None,
                    )
                    score_slot = slot_of(first_score + k, score_slots)
                    if online:
                        return for_static(
                            score_slot,
                            score_slots,
                            lambda slot, kept: weigh_online(at, slot, k > 0, kept),
                            kept,
                        )
                    if plan.other_statistics:
                        slot = slot_of(first_step + j, stages)
                        plgpu.barrier_wait(full[1].at[slot])

                        def given(start):
                            return tuple(
                                sm100_rows.over_rows(
                                    plgpu.load(smem.at[slot, pl.ds(start, chunk)], layout=sm100_rows.PER_COLUMN)
                                )
                                for smem in refs.number_smem
                            )
                    else:

                        def given(start):
                            return tuple(sm100_rows.over_columns(x, chunk) for x in own_numbers)

                    for_static(score_slot, score_slots, lambda slot, _: weigh(at, slot, given))
                    if plan.other_statistics:
                        plgpu.commit_smem()
                        plgpu.barrier_arrive(free[1].at[slot])
                    return kept

                kept = lax.fori_loop(0, tiles, compute_tile, kept)
                if plan.other_statistics:
                    pass_by(first_step, begin + tiles, count)
                return kept

            if online:
                # The vectors of rows are written from here on; the copy before has read them.
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            kept = (sm100_rows.every_row(LOWEST), sm100_rows.every_row(0.0)) if online else None
            kept = plan.over_heads(compute_head, kept)
            pl.when(tiles > 0)(lambda: plgpu.barrier_wait(sum_full.at[unit]))
            row = items[item, schedule.OUT_ROW] + start
            inverse = None
            if online:
                # Through shared memory from the layout of tensor memory to the one that is written out.
                peak, total = kept
                row_smem.at[unit][...] = jnp.where(total > 0, 1 / total, 0.0)
                plgpu.commit_smem()
                inverse = plgpu.load(row_smem.at[unit], layout=plgpu.Layout.TCGEN05.reduce(1))
            for i, name in enumerate(sums):
                scale = score.value_scale if name == "value" else score.key_scale
                for column in range(0, plan.dim, plan.piece):
                    columns = pl.ds(column, plan.piece)
                    # The copy before has read the staging tile.
                    plgpu.wait_smem_to_gmem(0, wait_read_only=True)

                    @pl.when(tiles > 0)
                    def _sum(name=name, columns=columns, scale=scale):
                        layout = plgpu.Layout.TCGEN05
                        value = plgpu.async_load_tmem(sum_tmem[unit][name].at[:, columns], layout=layout)
                        value = value * scale
                        if inverse is not None:
                            value *= lax.broadcast_in_dim(inverse, value.shape, [0])
                        row = plgpu.broadcasted_iota(jnp.int32, (TILE_ROWS, plan.piece), 0, layout=layout)
                        out_smem.at[unit][...] = jnp.where(row < held, value, 0.0).astype(plan.out_dtype)

                    @pl.when(tiles == 0)
                    def _zero():
                        # The sums were never begun, and may hold NaN.
                        zero = jnp.zeros((TILE_ROWS, plan.piece), plan.out_dtype)
                        out_smem.at[unit][...] = plgpu.layout_cast(zero, plgpu.Layout.TCGEN05)

                    plgpu.commit_smem()
                    store(out_smem.at[unit], refs.outputs[i].at[:, head, columns], row, extent)
                    plgpu.commit_smem_to_gmem_group()
            if online:
                row_smem.at[unit][...] = sm100_rows.log_sums(peak, total)
                plgpu.commit_smem()
                sm100_rows.store_rows(row_smem.at[unit], refs.outputs[-1].at[head], row, extent)
                plgpu.commit_smem_to_gmem_group()

            return (
                score_step + tiles * group,
                own_step,
                None if other_step is None else other_step + count * group,
            )

        return plan.over_turns(turns, compute_turn, steps)

    # Steps of slots that the warpgroup does not look at are not counted.
    steps = (
        jnp.int32(0),
        jnp.int32(0) if plan.own_statistics else None,
        jnp.int32(0) if plan.other_statistics else None,
    )
    for_each_item(refs.used[0], plan.heads, plan.blocks, compute_item, steps)
    plgpu.wait_smem_to_gmem(0)
