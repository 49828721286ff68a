"""The compute warpgroups of the Blackwell kernel: scores to weights, running softmax, and writing out the sums."""

import dataclasses
from typing import Any

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.mosaic import schedule
from pallas_kernels.mosaic.plan import Operands, Slots, slot_of
from pallas_kernels.mosaic.score import LOWEST
from pallas_kernels.mosaic.sm100_plan import CHUNK, Plan, Scratch, for_static, takes_polynomial
from pallas_kernels.mosaic.sm100_rows import (
    PER_COLUMN,
    PER_ROW,
    TILE,
    TILE_ROWS,
    Meeting,
    allowed,
    any_rises,
    every_row,
    is_whole,
    log_sums,
    over_columns,
    over_rows,
    store_rows,
)
from pallas_kernels.mosaic.streaming import for_each_item, give_free, store


def compute(unit: int, warpgroup: int, plan: Plan, arrays: Operands, slots: Slots, scratch: Scratch) -> None:
    """What a unit's compute warpgroup does, or one of the two that share it."""
    config, online, group = plan.config, plan.online, plan.group
    if warpgroup == 0:
        give_free(plan, slots, unit)
    if scratch.score_read is not None:
        plgpu.barrier_arrive(scratch.score_read)
    if warpgroup == 0 and scratch.score_free is not None:
        for slot in range(config.score_stages):
            plgpu.barrier_arrive(scratch.score_free.at[unit * config.score_stages + slot])

    def compute_item(item, head, steps):
        turns, count = plan.tiles_of(item)
        other_count = item[schedule.OTHER_COUNT]

        def compute_turn(t, first, last, steps):
            score_step, own_step, other_step = steps
            start = (t * config.units + unit) * TILE_ROWS
            held, extent = item[schedule.COUNT] - start, item[schedule.EXTENT] - start
            # A unit without rows, or whose rows meet none, only writes zeros.
            active, begin, end = plan.tiles_for(item, start, count)
            tiles = jnp.where(active, count if plan.window is None else end - begin, 0)
            own_numbers = []
            if plan.own_statistics:
                own_numbers = read_own(unit, plan, slots, own_step, count)
                own_step += jnp.where(count > 0, 1, 0)
            turn = Turn(
                plan,
                arrays,
                slots,
                scratch,
                unit,
                warpgroup,
                item,
                start,
                held,
                count,
                other_count,
                begin,
                tiles,
                own_numbers,
            )

            def compute_head(i, kept):
                first_step = other_step if group == 1 or other_step is None else other_step + i * count
                first_score = score_step if group == 1 else score_step + i * tiles
                return turn.compute_head(first_step, first_score, kept)

            if online:
                # The vectors of rows are written from here on; the previous copy has read them.
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            kept = (every_row(LOWEST), every_row(0.0)) if online else None
            turn.write(head, extent, plan.over_heads(compute_head, kept))
            return (
                score_step + tiles * group,
                own_step,
                None if other_step is None else other_step + count * group,
            )

        return plan.over_turns(turns, compute_turn, steps)

    # Steps of slots that the warpgroup ignores are not counted.
    steps = (
        jnp.int32(0),
        jnp.int32(0) if plan.own_statistics else None,
        jnp.int32(0) if plan.other_statistics else None,
    )
    for_each_item(arrays.work, plan.compute_columns, plan.heads, plan.blocks, compute_item, steps)
    plgpu.wait_smem_to_gmem(0)


def read_own(unit: int, plan: Plan, slots: Slots, step, count) -> list[Any]:
    """The statistics of the stationary rows of a unit, zeros where nothing streams."""
    slot = slot_of(step, plan.config.stationary_stages)
    barrier = unit * plan.config.stationary_stages + slot

    def read():
        plgpu.barrier_wait(slots.own_full.at[barrier])
        found = [plgpu.load(smem.at[unit, slot], layout=PER_ROW) for smem in slots.numbers]
        # The next copy arrives in the same place after these reads.
        plgpu.commit_smem()
        plgpu.barrier_arrive(slots.own_free.at[barrier])
        return found

    return lax.cond(count > 0, read, lambda: [every_row(0.0) for _ in slots.numbers])


@dataclasses.dataclass(frozen=True)
class Turn:
    """A stationary tile of a unit.

    Attributes:
      plan, arrays, slots, scratch: the kernel.
      unit: whose tile it is.
      warpgroup: 1 for the second of two that share the unit, else 0.
      item: of the work list.
      start: the tile's first row in the item.
      held: its rows that hold something.
      count: streamed tiles of a head.
      other_count: their rows.
      begin: the first of them that the unit works on.
      tiles: how many it works on.
      own_numbers: statistics of the rows.
    """

    plan: Plan
    arrays: Operands
    slots: Slots
    scratch: Scratch
    unit: int
    warpgroup: int
    item: Any
    start: Any
    held: Any
    count: Any
    other_count: Any
    begin: Any
    tiles: Any
    own_numbers: Any

    def compute_head(self, first_step, first_score, kept):
        """Turns the scores with one streamed head into weights.

        Args:
          first_step: step of the first streamed tile; None where they are not counted.
          first_score: step of the first scores.
          kept: maximum and sum of each row so far, for an online score.
        """
        plan = self.plan
        if plan.other_statistics:
            self.pass_by(first_step, 0, self.begin)

        def compute_tile(k, kept):
            j = k if plan.window is None else self.begin + k
            at = self.meeting(j)
            score_slot = slot_of(first_score + k, plan.config.score_stages)
            if plan.online:
                return for_static(
                    score_slot,
                    plan.config.score_stages,
                    lambda slot, kept: self.weigh_online(at, slot, k > 0, kept),
                    kept,
                )
            slot = slot_of(first_step + j, plan.config.stages) if plan.other_statistics else None
            if plan.other_statistics:
                plgpu.barrier_wait(self.slots.full[1].at[slot])
            if plan.shared_unit:
                self.weigh_half(at, slot)
            else:
                for_static(score_slot, plan.config.score_stages, lambda score, _: self.weigh(at, score, slot))
            if plan.other_statistics:
                plgpu.commit_smem()
                plgpu.barrier_arrive(self.slots.free[1].at[slot])
            return kept

        kept = lax.fori_loop(0, self.tiles, compute_tile, kept)
        if plan.other_statistics:
            self.pass_by(first_step, self.begin + self.tiles, self.count)
        return kept

    def pass_by(self, first_step, begin, end) -> None:
        """Frees the statistics of streamed tiles that the unit does not work on."""

        @pl.loop(begin, end)
        def _step(j):
            slot = slot_of(first_step + j, self.plan.config.stages)
            plgpu.barrier_wait(self.slots.full[1].at[slot])
            plgpu.barrier_arrive(self.slots.free[1].at[slot])

    def meeting(self, j) -> Meeting:
        """How the rows meet streamed tile `j`."""
        plan, block = self.plan, self.plan.config.block
        # In a softmax, rows that hold nothing may have infinite weights, or set the maximum.
        return Meeting(
            left=self.other_count - j * block,
            ahead=None if plan.window is None else self.start + self.item[schedule.SHIFT] - j * block,
            held=self.held if plan.softmax else None,
        )

    def part(self, source, start):
        """A chunk of columns of a tile in tensor memory."""
        return plgpu.async_load_tmem(source.at[:, pl.ds(start, self.plan.chunk)], layout=TILE)

    def statistics(self, slot, start):
        """Statistics of a chunk of scores from column `start` on; streamed ones are in `slot`."""
        chunk = self.plan.chunk
        if not self.plan.other_statistics:
            return tuple(over_columns(x, chunk) for x in self.own_numbers)
        parts = (smem.at[slot, pl.ds(start, chunk)] for smem in self.slots.numbers)
        return tuple(over_rows(plgpu.load(x, layout=PER_COLUMN)) for x in parts)

    def weigh(self, at: Meeting, score_slot: int, slot) -> None:
        """Scores to weights, for the streamed tile in `slot`."""
        plan, config, chunk = self.plan, self.plan.config, self.plan.chunk
        barrier, starts = self.unit * config.score_stages + score_slot, range(0, config.block, chunk)
        sources, targets = plan.score_tiles(self.scratch.scores, self.unit, score_slot)
        plgpu.barrier_wait(self.scratch.score_full.at[barrier])
        results = []
        for start in starts:
            polynomial = takes_polynomial(config, start)
            s = self.part(sources[0], start)
            if plan.backward:
                d = self.part(sources[1], start)
                weights, derivative = plan.score.backward(s, d, polynomial, self.statistics(slot, start))
                result = {"value": weights, "key": derivative}
            else:
                result = {"value": plan.score.weights(s, polynomial)}
            result = {name: result[name].astype(plan.dtype) for name in plan.sums}
            # Finishes each chunk before the next: all at once would not fit in the registers.
            results.append(lax.optimization_barrier(result))
        # The weights replace the scores, so all of those are read first.
        plgpu.wait_load_tmem()
        self.put(at, starts, results, targets)
        plgpu.barrier_arrive(self.scratch.weights_full.at[barrier])

    def weigh_half(self, at: Meeting, slot) -> None:
        """Like `weigh`, for the columns of one of the two warpgroups that share the unit.

        What D has to do with is left for last, so that the product for it runs meanwhile.
        """
        plan, scratch, chunk, half = self.plan, self.scratch, self.plan.chunk, self.plan.config.block // 2
        starts = range(self.warpgroup * half, (self.warpgroup + 1) * half, chunk)
        (source, gradient), targets = plan.score_tiles(scratch.scores, self.unit, 0)
        plgpu.barrier_wait(scratch.score_full.at[self.unit])

        def read(tile, start, done):
            # The tile is free as soon as its last chunk is in registers.
            part = self.part(tile, start)
            if start == starts[-1]:
                plgpu.wait_load_tmem()
                plgpu.barrier_arrive(done)
            return part

        begun, results = [], []
        for start in starts:
            s, polynomial = read(source, start, scratch.score_read), takes_polynomial(plan.config, start)
            weights, kept = plan.score.begin(s, polynomial, self.statistics(slot, start))
            begun.append(lax.optimization_barrier((weights.astype(plan.dtype), kept)))
        plgpu.barrier_wait(scratch.gradient_full)
        for start, (weights, kept) in zip(starts, begun, strict=True):
            d = read(gradient, start, scratch.gradient_read)
            derivative = plan.score.finish(kept, d, self.statistics(slot, start))
            result = {"value": weights, "key": derivative.astype(plan.dtype)}
            results.append(lax.optimization_barrier({name: result[name] for name in plan.sums}))
        # The weights replace D, of which the other warpgroup reads half.
        plgpu.barrier_wait(scratch.gradient_read)
        self.put(at, starts, results, targets)
        plgpu.barrier_arrive(scratch.weights_full.at[self.unit])

    def put(self, at: Meeting, starts, results, targets) -> None:
        """Stores in `targets` the weights of the chunks from columns `starts` on, 0 for what does not count."""
        plan, chunk = self.plan, self.plan.chunk

        def masked():
            return [
                {
                    name: jnp.where(allowed(at, start, chunk, plan.window), weights, jnp.zeros((), plan.dtype))
                    for name, weights in result.items()
                }
                for start, result in zip(starts, results, strict=True)
            ]

        if plan.masks:
            results = lax.cond(is_whole(at, plan.config.block, plan.window), lambda: results, masked)
        for start, result in zip(starts, results, strict=True):
            for name in plan.sums:
                plgpu.async_store_tmem(targets[name].at[:, pl.ds(start, chunk)], result[name])
        plgpu.commit_tmem()

    def weigh_online(self, at: Meeting, score_slot: int, begun, kept):
        """Like `weigh`, for a softmax; keeps maximum and sum of each row, and rescales the sums if `begun`."""
        plan, scratch, config, chunk = self.plan, self.scratch, self.plan.config, self.plan.chunk
        barrier, starts = self.unit * config.score_stages + score_slot, range(0, config.block, chunk)
        exponent = plan.score.online
        assert exponent is not None
        (source,), targets = plan.score_tiles(scratch.scores, self.unit, score_slot)
        before, total = kept
        plgpu.barrier_wait(scratch.score_full.at[barrier])

        # The mask goes into tensor memory, so that what follows need not be compiled twice.
        @pl.when(jnp.logical_not(is_whole(at, config.block, plan.window)))
        def _mask():
            for start in starts:
                inside = allowed(at, start, chunk, plan.window)
                masked = jnp.where(inside, self.part(source, start), -jnp.inf)
                plgpu.wait_load_tmem()
                plgpu.async_store_tmem(source.at[:, pl.ds(start, chunk)], masked)
            plgpu.commit_tmem()

        highest = before
        for start in starts:
            highest = jnp.maximum(highest, self.part(source, start).max(axis=1) * exponent)
        rises = any_rises(highest - before, scratch.rows.at[self.unit])
        peak = lax.cond(rises, lambda: highest, lambda: before)
        factor = jnp.exp2(before - peak)
        total, results = total * factor, []
        for start in starts:
            weights = jnp.exp2(self.part(source, start) * exponent - over_columns(peak, chunk))
            total += weights.sum(axis=1)
            total, result = lax.optimization_barrier((total, weights.astype(plan.dtype)))
            results.append(result)
        plgpu.wait_load_tmem()
        for start, result in zip(starts, results, strict=True):
            plgpu.async_store_tmem(targets["value"].at[:, pl.ds(start, chunk)], result)

        # The product with the weights of the previous step has to be in the sums.
        pl.when(begun)(lambda: plgpu.barrier_wait(scratch.sum_full.at[self.unit]))

        @pl.when(begun & rises)
        def _rescale():
            for start in range(0, plan.dim, CHUNK):
                columns = scratch.sums[self.unit]["value"].at[:, pl.ds(start, CHUNK)]
                value = plgpu.async_load_tmem(columns, layout=TILE)
                value = value * over_columns(factor, CHUNK)
                plgpu.wait_load_tmem()
                plgpu.async_store_tmem(columns, value)

        plgpu.commit_tmem()
        plgpu.barrier_arrive(scratch.weights_full.at[barrier])
        return peak, total

    def write(self, head, extent, kept) -> None:
        """Waits for the sums and writes `extent` rows of them, with the log-sum-exps of `kept` for an online score."""
        plan, scratch, unit, outputs = self.plan, self.scratch, self.unit, self.arrays.outputs
        pl.when(self.tiles > 0)(lambda: plgpu.barrier_wait(scratch.sum_full.at[unit]))
        row = self.item[schedule.OUT_ROW] + self.start
        inverse = None
        if plan.online:
            # Through shared memory, from the layout of tensor memory to the one written out.
            peak, total = kept
            scratch.rows.at[unit][...] = jnp.where(total > 0, 1 / total, 0.0)
            plgpu.commit_smem()
            inverse = plgpu.load(scratch.rows.at[unit], layout=plgpu.Layout.TCGEN05.reduce(1))
        pieces = [
            (name, output, column)
            for name, output in zip(plan.sums, outputs, strict=False)
            for column in range(0, plan.dim, plan.piece)
        ]
        for name, output, column in pieces[self.warpgroup :: plan.config.warpgroups]:
            columns = pl.ds(column, plan.piece)
            # The previous copy has read the staging tile.
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            self.stage(name, columns, inverse)
            plgpu.commit_smem()
            store(scratch.out.at[unit + self.warpgroup], output.at[:, head, columns], row, extent)
            plgpu.commit_smem_to_gmem_group()
        if plan.online:
            peak, total = kept
            scratch.rows.at[unit][...] = log_sums(peak, total)
            plgpu.commit_smem()
            store_rows(scratch.rows.at[unit], outputs[-1].at[head], row, extent)
            plgpu.commit_smem_to_gmem_group()

    def stage(self, name: str, columns, inverse) -> None:
        """Puts some columns of a sum, times `inverse` of each row, into the staging tile."""
        plan, layout, target = self.plan, plgpu.Layout.TCGEN05, self.scratch.out.at[self.unit + self.warpgroup]
        scale = plan.score.value_scale if name == "value" else plan.score.key_scale

        @pl.when(self.tiles > 0)
        def _sum():
            value = plgpu.async_load_tmem(self.scratch.sums[self.unit][name].at[:, columns], layout=layout)
            value = value * scale
            if inverse is not None:
                value *= lax.broadcast_in_dim(inverse, value.shape, [0])
            row = plgpu.broadcasted_iota(jnp.int32, (TILE_ROWS, plan.piece), 0, layout=layout)
            # The compiler would round first, and choose between halves of registers.
            value = lax.optimization_barrier(jnp.where(row < self.held, value, 0.0))
            target[...] = value.astype(plan.out_dtype)

        @pl.when(self.tiles == 0)
        def _zero():
            # The sums were never started and may hold NaN.
            zero = jnp.zeros((TILE_ROWS, plan.piece), plan.out_dtype)
            target[...] = plgpu.layout_cast(zero, layout)
