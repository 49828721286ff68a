"""The warps of the Blackwell kernel that issue products."""

import dataclasses
from typing import Any

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.mosaic.plan import Operands, Slots, slot_of, when
from pallas_kernels.mosaic.sm100_plan import Plan, Scratch, for_static
from pallas_kernels.mosaic.sm100_rows import TILE_ROWS
from pallas_kernels.mosaic.streaming import for_each_item

OPERAND = {"value": 1, "key": 0}
"""Which of x and y is multiplied by the weights for a sum."""


def issue(unit: int, plan: Plan, arrays: Operands, slots: Slots, scratch: Scratch) -> None:
    """Issues the products of a unit."""
    config, group = plan.config, plan.group

    def issue_item(item, _, steps):
        turns, count = plan.tiles_of(item)

        def issue_turn(t, first, last, steps):
            own_step, other_step, score_step = steps
            own_slot = slot_of(own_step, config.stationary_stages)
            tiles = [smem.at[unit, own_slot] for smem in slots.own]
            own = unit * config.stationary_stages + own_slot
            active, begin, end = plan.tiles_for(item, (t * config.units + unit) * TILE_ROWS, count)

            def issue_head(i, _):
                # Steps of the first tile of this head, and of the first one that the unit works on.
                first_step, first_score = other_step, score_step
                if group > 1:
                    first_step, first_score = other_step + i * count, score_step + i * (end - begin)
                head = Head(
                    plan, slots, scratch, unit, tiles, own, i, first, last, count, begin, end, first_step, first_score
                )
                lax.cond(active, head.work, head.rest)

            plgpu.barrier_wait(slots.own_full.at[own])
            plan.over_heads(issue_head, None)
            done = jnp.where(active, (end - begin) * group, 0)
            return own_step + 1, jnp.where(last, other_step + count * group, other_step), score_step + done

        return lax.cond(count > 0, lambda: plan.over_turns(turns, issue_turn, steps), lambda: steps)

    steps = (jnp.int32(0),) * 3
    for_each_item(arrays.work, plan.issue_columns, plan.heads, plan.blocks, issue_item, steps)
    if scratch.score_free is not None:
        for slot in range(config.score_stages):
            plgpu.barrier_wait(scratch.score_free.at[unit * config.score_stages + slot])
    if scratch.score_read is not None:
        plgpu.barrier_wait(scratch.score_read)


@dataclasses.dataclass(frozen=True)
class Head:
    """The streamed tiles of one head past a stationary tile.

    Attributes:
      plan, slots, scratch: the kernel.
      unit: whose products these are.
      tiles: the stationary tiles.
      own: their barriers.
      i: number of the head in its group.
      first: whether the streamed tiles arrive in this turn.
      last: whether they leave after this turn.
      count: streamed tiles.
      begin: the first that the unit works on.
      end: the one after the last that it works on.
      first_step: step of the first streamed tile.
      first_score: step of the first scores.
    """

    plan: Plan
    slots: Slots
    scratch: Scratch
    unit: int
    tiles: Any
    own: Any
    i: Any
    first: Any
    last: Any
    count: Any
    begin: Any
    end: Any
    first_step: Any
    first_score: Any

    def work(self) -> None:
        """Scores and products of every tile, in turn."""
        begin, end, score_slots = self.begin, self.end, self.plan.config.score_stages
        if self.plan.window is not None:
            self.pass_by(0, begin)

        @pl.loop(begin, end + 1)
        def _step(j):
            if self.plan.shared_unit:
                # While the warpgroups finish D, the next S is computed; while they begin that S, the products and D.
                pl.when(j > begin)(lambda: self.gradients(j - 1))
                pl.when(j < end)(lambda: self.scores(j))
                pl.when(j > begin)(lambda: self.products(j - 1))
                return
            # With two slots the scores of the next step do not wait for the weights of this step.
            if score_slots == 2:
                pl.when(j < end)(lambda: self.scores(j))
            pl.when(j > begin)(lambda: self.products(j - 1))
            if score_slots == 1:
                pl.when(j < end)(lambda: self.scores(j))

        if self.plan.window is not None:
            self.pass_by(end, self.count)

    def rest(self) -> None:
        """What a unit with nothing to compute does."""
        self.pass_by(0, self.count)

        @pl.when(self.i == self.plan.group - 1)
        def _free():
            plgpu.tcgen05_commit_arrive(self.slots.own_free.at[self.own])

    def pass_by(self, begin, end) -> None:
        """Does for streamed tiles what a unit working on them would do."""

        @pl.loop(begin, end)
        def _step(j):
            slot = self.slot(j)
            for ready, done in zip(self.slots.full, self.slots.free, strict=True):
                when(self.first, lambda ready=ready: plgpu.barrier_wait(ready.at[slot]))
                when(self.last, lambda done=done: plgpu.tcgen05_commit_arrive(done.at[slot]))

    def gradients(self, j) -> None:
        """Issues the product for D of a tile, in a shared unit."""
        plan, scratch, slot = self.plan, self.scratch, self.slot(j)
        (_, d), _ = plan.score_tiles(scratch.scores, self.unit, 0)
        when(self.first, lambda: plgpu.barrier_wait(self.slots.full[1].at[slot]))
        # The weights stored here have to be multiplied first.
        if scratch.score_free is not None:
            plgpu.barrier_wait(scratch.score_free.at[self.unit])
        y = self.slots.other[1].at[slot]
        plgpu.tcgen05_mma(d, self.tiles[1], y.transpose((1, 0)), accumulate=False)
        plgpu.tcgen05_commit_arrive(scratch.gradient_full)
        self.free_after_scores(j)

    def scores(self, j) -> None:
        """Issues the products for the scores of a tile, in a shared unit that for S."""
        plan, scratch, full = self.plan, self.scratch, self.slots.full
        slot = self.slot(j)
        x, y = (smem.at[slot] for smem in self.slots.other)

        def into(score_slot, _):
            barrier = self.unit * plan.config.score_stages + score_slot
            (s, *d), _ = plan.score_tiles(scratch.scores, self.unit, score_slot)

            def put(target, a, b, replaced):
                # The weights stored here have to be multiplied first.
                if replaced and scratch.score_free is not None:
                    plgpu.barrier_wait(scratch.score_free.at[barrier])
                plgpu.tcgen05_mma(target, a, b.transpose((1, 0)), accumulate=False)

            when(self.first, lambda: plgpu.barrier_wait(full[0].at[slot]))
            if plan.shared_unit:
                plgpu.barrier_wait(scratch.score_read)
            put(s, self.tiles[0], x, "value" in plan.sums and not plan.shared_unit)
            if plan.backward and not plan.shared_unit:
                when(self.first, lambda: plgpu.barrier_wait(full[1].at[slot]))
                # Where both are replaced, S has waited already.
                put(d[0], self.tiles[1], y, "value" not in plan.sums)
            plgpu.tcgen05_commit_arrive(scratch.score_full.at[barrier])

        for_static(self.score_slot(j), plan.config.score_stages, into)
        if not plan.shared_unit:
            self.free_after_scores(j)

    def free_after_scores(self, j) -> None:
        """Frees the tiles that the products with the weights do not read."""
        plan, free, slot = self.plan, self.slots.free, self.slot(j)
        if "key" not in plan.sums:
            when(self.last, lambda: plgpu.tcgen05_commit_arrive(free[0].at[slot]))
        if "value" not in plan.sums:
            when(self.last, lambda: plgpu.tcgen05_commit_arrive(free[1].at[slot]))

        @pl.when(self.is_last(j))
        def _free():
            plgpu.tcgen05_commit_arrive(self.slots.own_free.at[self.own])

    def products(self, j) -> None:
        """Issues the products of a tile's weights, once they are there."""
        plan, scratch, slot = self.plan, self.scratch, self.slot(j)
        if not plan.backward:
            when(self.first, lambda: plgpu.barrier_wait(self.slots.full[1].at[slot]))

        def out_of(score_slot, _):
            barrier = self.unit * plan.config.score_stages + score_slot
            # These weights come after the same warpgroup has read the previous turn's sums.
            plgpu.barrier_wait(scratch.weights_full.at[barrier])
            _, weights = plan.score_tiles(scratch.scores, self.unit, score_slot)
            begun = j > self.begin if plan.group == 1 else (j > self.begin) | (self.i > 0)
            for name in plan.sums:
                tile = self.slots.other[OPERAND[name]].at[slot]
                plgpu.tcgen05_mma(scratch.sums[self.unit][name], weights[name], tile, accumulate=begun)
            if scratch.score_free is not None:
                plgpu.tcgen05_commit_arrive(scratch.score_free.at[barrier])

        for_static(self.score_slot(j), plan.config.score_stages, out_of)
        for name in plan.sums:
            barrier = self.slots.free[OPERAND[name]].at[slot]
            when(self.last, lambda barrier=barrier: plgpu.tcgen05_commit_arrive(barrier))
        # Running sums are rescaled between two products, others are only read at the end.
        when(
            True if plan.online else self.is_last(j),
            lambda: plgpu.tcgen05_commit_arrive(scratch.sum_full.at[self.unit]),
        )

    def slot(self, j):
        """Where tile `j` is."""
        return slot_of(self.first_step + j, self.plan.config.stages)

    def score_slot(self, j):
        """Where its scores go."""
        step = self.first_score + (j if self.plan.window is None else j - self.begin)
        return slot_of(step, self.plan.config.score_stages)

    def is_last(self, j):
        """Whether it is the last one of the turn."""
        return j == self.end - 1 if self.plan.group == 1 else (j == self.end - 1) & (self.i == self.plan.group - 1)
