"""The compute warpgroups of the Hopper kernel: products, scores to weights, and writing out the sums."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.mosaic import plan as plans
from pallas_kernels.mosaic import schedule
from pallas_kernels.mosaic.config import Sm90Config
from pallas_kernels.mosaic.plan import Operands, Slots, slot_of, when
from pallas_kernels.mosaic.score import LOWEST, in_chunks, online_step
from pallas_kernels.mosaic.streaming import (
    for_each_item,
    give_free,
    stage_vector,
    store,
    store_vector,
    tiles_in_reach,
)

TILE_ROWS = 64
"""Stationary rows of a compute warpgroup: the rows of one wgmma."""

LAYOUT = plgpu.Layout.WGMMA
PER_ROW, PER_COLUMN = LAYOUT.reduce(1), LAYOUT.reduce(0)


class Plan(plans.Plan):
    """A kernel for Hopper."""

    config: Sm90Config
    TILE_ROWS: ClassVar[int] = TILE_ROWS


class Scratch(NamedTuple):
    """What the compute warpgroups have besides the slots.

    Attributes:
      out: for each sum, a tile of each unit to be written out.
      log_sums: for each unit, what `store_vector` stores; None except for an online score.
      weights: for each sum, the weights of each unit; none where they stay in registers.
      turn: whose turn it is on the tensor cores; None without turns.
    """

    out: Any
    log_sums: Any
    weights: Any
    turn: Any


def compute(wg, plan: Plan, arrays: Operands, slots: Slots, scratch: Scratch) -> None:
    """What warpgroup `wg` does."""
    units, run = plan.config.units, plan.config.run
    give_free(plan, slots, wg)

    def compute_item(item, head, steps):
        turns, count = plan.tiles_of(item)
        other_count = item[schedule.OTHER_COUNT]

        def compute_turn(t, loads, last, steps):
            own_step, other_step = steps
            own_slot = slot_of(own_step, plan.config.stationary_stages)
            first = (t * units + wg) * TILE_ROWS
            barrier = wg * plan.config.stationary_stages + own_slot
            plgpu.barrier_wait(slots.own_full.at[barrier])
            turn = Turn(
                plan, arrays, slots, scratch, wg, item, first, own_slot, other_step, count, other_count, loads, last
            )
            turn.sum_up()
            turn.write(head)
            after = other_step + (count if plan.group == 1 else count * plan.group)
            return own_step + 1, jnp.where(last, after, other_step) if run > 1 else after

        return plan.over_turns(turns, compute_turn, steps)

    steps = (jnp.int32(0), jnp.int32(0))
    for_each_item(arrays.work, plan.compute_columns, plan.heads, plan.blocks, compute_item, steps)
    plgpu.wait_smem_to_gmem(0)


@dataclasses.dataclass(frozen=True)
class Turn:
    """One stationary tile of a unit with one head.

    Attributes:
      plan, arrays, slots, scratch: the kernel.
      wg: the warpgroup.
      item: of the work list.
      first: the tile's first row in the item.
      own_slot: the tile's slot.
      other_step: step of the first streamed tile.
      count: streamed tiles of a head.
      other_count: their rows.
      loads: whether the streamed tiles arrive in this turn.
      last: whether they leave after this turn.
    """

    plan: Plan
    arrays: Operands
    slots: Slots
    scratch: Scratch
    wg: Any
    item: Any
    first: Any
    own_slot: Any
    other_step: Any
    count: Any
    other_count: Any
    loads: Any
    last: Any

    def sum_up(self) -> None:
        """Computes the sums and stages them."""
        if self.plan.online:
            self.accumulate_online()
        else:
            acc = plgpu.WGMMAAccumulatorRef((TILE_ROWS, self.plan.dim), jnp.float32)
            pl.run_scoped(self.accumulate, *(acc for _ in self.plan.sums))
        plgpu.commit_smem()

    def write(self, head) -> None:
        """Starts to store what is staged."""
        extent = self.item[schedule.EXTENT] - self.first
        at = self.item[schedule.OUT_ROW] + self.first
        for smem, gmem in zip(self.scratch.out, self.arrays.outputs, strict=False):
            store(smem.at[self.wg], gmem.at[:, head], at, extent)
        if self.plan.online:
            store_vector(self.scratch.log_sums.at[self.wg], self.arrays.outputs[-1].at[head], at, extent)
        plgpu.commit_smem_to_gmem_group()

    # --- the streamed tiles ---

    def accumulate(self, *sums) -> None:
        """Adds the products of all streamed tiles to the accumulators `sums`."""
        plan, full, free = self.plan, self.slots.full, self.slots.free
        by_name = dict(zip(plan.sums, sums, strict=True))

        def step(slot, j, _):
            x, y = (smem.at[slot] for smem in self.slots.other)
            when(self.loads, lambda: plgpu.barrier_wait(full[0].at[slot]))
            if plan.backward:
                when(self.loads, lambda: plgpu.barrier_wait(full[1].at[slot]))
                # Two sums, statistics, or heads wider than 64 leave no registers for descriptors.
                a, b = self.own_tiles(opaque=len(plan.sums) == 2 or plan.statistics > 0 or plan.dim > 64)
                weights, ds = self.masked(j, 0, *self.weights_and_ds(self.scores((a, x), (b, y)), slot))
            else:
                scores = self.scores((self.own_tiles()[0], x))
                when(self.last, lambda: plgpu.barrier_arrive(free[0].at[slot]))
                weights, ds = *self.masked(j, 0, self.weights(scores)), None
            self.take_turn_with_values(slot)
            for i, name in enumerate(plan.sums):
                self.add_product(by_name[name], *((weights, i, y) if name == "value" else (ds, i, x)))
            plgpu.wgmma_wait(0)
            if plan.backward:
                when(self.last, lambda: plgpu.barrier_arrive(free[0].at[slot]))
            when(self.last, lambda: plgpu.barrier_arrive(free[1].at[slot]))

        self.stream(step, None)
        self.stage(*(by_name[name][...] for name in plan.sums))

    def accumulate_online(self) -> None:
        """The same for an online softmax, whose sum is carried in registers with maximum and sum of each row."""
        online, dtype = self.plan.score.online, self.plan.dtype
        assert online is not None
        # With a negative factor the maximum would be a minimum, and with zero -inf would become NaN.
        before, factor = (1.0, online) if online > 0 else (online, 1.0)

        def step(slot, j, carry):
            acc, highest, total = carry
            x, y = (smem.at[slot] for smem in self.slots.other)
            plgpu.barrier_wait(self.slots.full[0].at[slot])
            (s,) = self.scores((self.own_tiles()[0], x))
            plgpu.barrier_arrive(self.slots.free[0].at[slot])
            s = s if before == 1 else s * before
            (s,) = self.masked(j, -jnp.inf, s)
            weights, highest, total, decay = online_step(s, highest, total, factor, dtype)
            acc = acc * lax.broadcast_in_dim(decay, acc.shape, [0])
            self.take_turn_with_values(slot)
            acc = self.plus_product(acc, weights, y)
            plgpu.barrier_arrive(self.slots.free[1].at[slot])
            return acc, highest, total

        acc, highest, total = self.stream(
            step,
            (
                plgpu.layout_cast(jnp.zeros((TILE_ROWS, self.plan.dim), jnp.float32), LAYOUT),
                plgpu.layout_cast(jnp.full((TILE_ROWS,), LOWEST, jnp.float32), PER_ROW),
                plgpu.layout_cast(jnp.zeros((TILE_ROWS,), jnp.float32), PER_ROW),
            ),
        )
        inverse = jnp.where(total > 0, 1 / total, 0.0)
        held = self.stage(acc * lax.broadcast_in_dim(inverse, acc.shape, [0]))
        row = plgpu.broadcasted_iota(jnp.int32, (TILE_ROWS,), 0, layout=PER_ROW)
        log_sum = jnp.where((row < held) & (total > 0), highest + jnp.log2(total), LOWEST)
        stage_vector(self.scratch.log_sums.at[self.wg], log_sum)

    def stream(self, step, carry):
        """``step(slot, j, carry)`` for the streamed tiles of every head that are within reach."""
        plan, stages, window = self.plan, self.plan.config.stages, self.plan.window
        begin, end = 0, self.count
        if window is not None:
            begin, end = tiles_in_reach(self.first, TILE_ROWS, self.item, window, plan.config.block)

        def head_turn(number, carry):
            start = self.other_step if plan.group == 1 else self.other_step + number * self.count

            def pass_by(j, _):
                """Takes part in what the other unit waits for: freeing the slot, and two turns."""
                slot = slot_of(start + j, stages)
                for full, free in zip(self.slots.full, self.slots.free, strict=True):
                    plgpu.barrier_wait(full.at[slot])
                    plgpu.barrier_arrive(free.at[slot])
                    self.take_turn()

            if window is not None:
                lax.fori_loop(0, begin, pass_by, None)
            carry = lax.fori_loop(begin, end, lambda j, carry: step(slot_of(start + j, stages), j, carry), carry)
            if window is not None:
                lax.fori_loop(end, self.count, pass_by, None)
            return carry

        if self.scratch.turn is not None:
            pl.when(self.wg == 1)(self.take_turn)
        carry = plan.over_heads(head_turn, carry)
        if self.scratch.turn is not None:
            pl.when(self.wg == 0)(self.take_turn)
        plgpu.barrier_arrive(self.slots.own_free.at[self.wg * plan.config.stationary_stages + self.own_slot])
        return carry

    def take_turn(self) -> None:
        """Gives the tensor cores to the other warpgroup, and waits for them."""
        if self.scratch.turn is not None:
            plgpu.barrier_arrive(self.scratch.turn)
            plgpu.barrier_wait(self.scratch.turn)

    def take_turn_with_values(self, slot) -> None:
        """Waits for the streamed ``y`` and the other warpgroup; the scores are done."""
        if self.scratch.turn is not None:
            plgpu.barrier_arrive(self.scratch.turn)
        if not self.plan.backward:
            when(self.loads, lambda: plgpu.barrier_wait(self.slots.full[1].at[slot]))
        if self.scratch.turn is not None:
            plgpu.barrier_wait(self.scratch.turn)

    # --- one tile ---

    def own_tiles(self, opaque: bool = False):
        """The stationary tiles; `opaque` hides that they are always the same, or the compiler would keep descriptors of
        them in registers from the first item to the last.
        """
        unit = lax.optimization_barrier(self.wg) if opaque else self.wg
        return [smem.at[unit, self.own_slot] for smem in self.slots.own]

    def scores(self, *pairs):
        """``a x^T`` of each pair of tiles in shared memory; then it is the other warpgroup's turn."""

        def scope(*accs):
            for acc, (a, x) in zip(accs, pairs, strict=True):
                plgpu.wgmma(acc, a, x.transpose((1, 0)))
            self.take_turn()
            return tuple(acc[...] for acc in accs)

        acc = plgpu.WGMMAAccumulatorRef((TILE_ROWS, self.plan.config.block), jnp.float32)
        return pl.run_scoped(scope, *[acc] * len(pairs))

    # The arrays are narrowed chunk by chunk, so that the wide ones die early: registers are scarce.

    def weights(self, scores):
        """Weights for the scores in a forward pass."""
        score, dtype = self.plan.score, self.plan.dtype
        (weights,) = in_chunks(lambda s, p: (score.weights(s, p).astype(dtype),), self.plan.config.polynomial, *scores)
        return weights

    def weights_and_ds(self, products, slot):
        """Weights and dS in a backward pass; streamed statistics are in `slot`."""
        plan = self.plan

        def both(s, d, *more):
            *of_rows, polynomial = more  # what `statistics` gives, and whether this chunk uses polynomials
            weights, ds = plan.score.backward(s, d, polynomial, tuple(of_rows))
            return weights.astype(plan.dtype), ds.astype(plan.dtype)

        def statistics(columns):
            width = columns.stop - columns.start
            if plan.other_statistics:
                refs, along, layout = (
                    [x.at[slot, pl.ds(columns.start, width)] for x in self.slots.numbers],
                    1,
                    PER_COLUMN,
                )
            else:
                refs, along, layout = [x.at[self.wg, self.own_slot] for x in self.slots.numbers], 0, PER_ROW
            vectors = (plgpu.load(x, layout=layout) for x in refs)
            return tuple(lax.broadcast_in_dim(x, (TILE_ROWS, width), [along]) for x in vectors)

        return in_chunks(both, plan.config.polynomial, *products, more=statistics if plan.statistics else None)

    def masked(self, j, fill, *arrays):
        """The arrays with `fill` where a row does not meet a streamed row of tile `j`."""
        plan, block, window = self.plan, self.plan.config.block, self.plan.window
        if not plan.masks:
            return arrays
        left = self.other_count - j * block
        at_edge = left < block
        below, above = window or (0, 0)
        ahead = jnp.int32(0)  # how far the first column is ahead of the first row
        if window is not None:
            ahead = j * block - self.first - self.item[schedule.SHIFT]
            at_edge |= (ahead < TILE_ROWS - 1 - below) | (ahead > above - (block - 1))

        def mask():
            column = plgpu.broadcasted_iota(jnp.int32, (TILE_ROWS, block), 1, layout=LAYOUT)
            if window is None:
                allowed = column < left
            else:
                # Bounds by row: a tile of distances would be kept by the compiler from step to step.
                row = plgpu.broadcasted_iota(jnp.int32, (TILE_ROWS,), 0, layout=PER_ROW)
                bounds = row - (below + ahead), jnp.minimum(row + (above - ahead), left - 1)
                low, high = (lax.broadcast_in_dim(x, column.shape, [0]) for x in bounds)
                allowed = (column >= low) & (column <= high)
            return tuple(jnp.where(allowed, x, jnp.asarray(fill, x.dtype)) for x in arrays)

        # In gdpa's backward passes there are no registers left for a branch: if one tile is masked, all are.
        return mask() if plan.backward and not plan.statistics else lax.cond(at_edge, mask, lambda: arrays)

    def add_product(self, acc, weights, i: int, tile) -> None:
        """Adds ``weights tile`` to an accumulator; `i` is the number of the sum."""
        if self.scratch.weights:
            smem = self.scratch.weights[i].at[self.wg]
            smem[...] = weights
            plgpu.commit_smem()
            weights = smem
        plgpu.wgmma(acc, weights, tile)

    def plus_product(self, acc, weights, tile):
        """The sum that an online softmax carries in registers, to be rescaled, plus one more product."""
        if not self.scratch.weights:
            return pl.run_state(lambda ref: plgpu.wgmma(ref, weights, tile))(plgpu.WGMMAAccumulatorRef.init(acc))

        def scope(product):
            self.add_product(product, weights, 0, tile)
            return product[...]

        return acc + pl.run_scoped(scope, plgpu.WGMMAAccumulatorRef((TILE_ROWS, self.plan.dim), jnp.float32))

    def stage(self, *values):
        """Puts the sums, float32, into their staging tiles; returns the rows of the tile that hold something."""
        # The previous turn's store has read its staging tile by now.
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        score, held = self.plan.score, self.item[schedule.COUNT] - self.first
        row = plgpu.broadcasted_iota(jnp.int32, (TILE_ROWS, self.plan.dim), 0, layout=LAYOUT)
        for smem, name, value in zip(self.scratch.out, self.plan.sums, values, strict=True):
            scale = score.value_scale if name == "value" else score.key_scale
            # The compiler would round first, and choose between halves of registers.
            value = lax.optimization_barrier(jnp.where(row < held, value * scale, 0.0))
            smem.at[self.wg][...] = value.astype(self.plan.out_dtype)
        return held
