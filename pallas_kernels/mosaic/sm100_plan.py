"""What the warps of the Blackwell kernel agree on: what is known at trace time, and where they meet."""

from typing import Any, ClassVar, NamedTuple

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.mosaic import plan as plans
from pallas_kernels.mosaic import schedule, sm100_rows
from pallas_kernels.mosaic.config import Sm100Config
from pallas_kernels.mosaic.sm100_rows import TILE_ROWS

SWIZZLE = 128
"""Most bytes of a row that are contiguous in shared memory."""

CHUNK = 32
"""Columns of scores that a compute warpgroup holds in registers at once."""


def chunk_of(config: Sm100Config) -> int:
    """Columns of scores that are turned into weights at once."""
    return config.block // 8 if config.polynomial else CHUNK


def takes_polynomial(config: Sm100Config, start: int) -> bool:
    """Whether the chunk from column `start` on does; such chunks alternate with others, so all units are busy."""
    before, after = ((start + add) * config.polynomial // config.block for add in (0, chunk_of(config)))
    return before < after


class Plan(plans.Plan):
    """A kernel for Blackwell."""

    config: Sm100Config
    TILE_ROWS: ClassVar[int] = TILE_ROWS

    @property
    def shared_unit(self) -> bool:
        """Whether two compute warpgroups share a unit."""
        return self.config.warpgroups == 2

    @property
    def compute_warpgroups(self) -> int:
        """Those of all units."""
        return self.config.units * self.config.warpgroups

    @property
    def own_readers(self) -> int:
        """How many free a stationary slot: the issuing warp, and compute warpgroups if they read statistics."""
        return 1 + self.config.warpgroups * self.own_statistics

    @property
    def other_readers(self) -> tuple[int, int]:
        """How many of each unit free the slots of x and of y."""
        return 1, 1 + self.config.warpgroups * self.other_statistics

    @property
    def weight_names(self) -> tuple[str, ...]:
        """What S and D become."""
        return ("value", "key") if self.backward else ("value",)

    @property
    def piece(self) -> int:
        """Columns of a result that are written out at once."""
        return min(SWIZZLE // self.out_dtype.itemsize, self.dim)

    @property
    def chunk(self) -> int:
        """Columns of scores that are turned into weights at once."""
        return chunk_of(self.config)

    def tiled(self, shape: tuple[int, ...], dtype=None):
        """Shared memory for tiles of pieces of rows."""
        dtype = jnp.dtype(dtype or self.dtype)
        return plans.tiled_smem(shape, dtype, min(SWIZZLE, self.dim * dtype.itemsize))

    def score_tiles(self, tiles, unit: int, slot: int):
        """Tiles of S and, in the backward pass, D; and by name of the sum, the weights that replace them."""
        here = tiles[unit][slot]
        if self.shared_unit:
            d, weights = here["key"]
            return [here["value"], d], weights
        scores = [here[name][0] if name in self.sums else here[name] for name in self.weight_names]
        return scores, {name: here[name][1] for name in self.sums}

    @property
    def issue_columns(self) -> list[int]:
        """Columns of the work list that the issuing warps read."""
        columns = [schedule.OTHER_COUNT, schedule.COUNT]
        return columns + [schedule.EXTENT] * (self.config.run > 1) + [schedule.SHIFT] * (self.window is not None)

    def tiles_for(self, item, start, count):
        """Whether the unit from row `start` of an item works on any of `count` tiles, and begin and end of those."""
        held = item[schedule.COUNT] - start
        if self.window is None:
            return held > 0, 0, count
        first = item[schedule.SHIFT] + start
        begin, end = sm100_rows.reached(first, held, count, self.config.block, self.window)
        return end > begin, begin, end


def tensor_barrier(**arguments: int) -> plgpu.Barrier:
    """A barrier at which products arrive."""
    return plgpu.Barrier(orders_tensor_core=True, **arguments)


class Scratch(NamedTuple):
    """What a unit's warps have besides the slots.

    Attributes:
      out: for each compute warpgroup, a tile to be written out.
      rows: for each unit, one number per row; None except for an online score.
      scores: for each unit, the slots for scores, see `Plan.score_tiles`.
      sums: for each unit, the sums by name.
      score_free: the weights in a slot of a unit have been multiplied; None if the order of products is relied on.
      score_full: scores have been computed, of a shared unit S alone.
      score_read: both warpgroups of a shared unit have read S; None for others.
      gradient_full: D of a shared unit has been computed; None for others.
      gradient_read: both of its warpgroups have read D; None for others.
      sum_full: all products are in the sums of a unit; for an online score, those of each step.
      weights_full: weights have replaced the scores.
    """

    out: Any
    rows: Any
    scores: Any
    sums: Any
    score_free: Any
    score_full: Any
    score_read: Any
    gradient_full: Any
    gradient_read: Any
    sum_full: Any
    weights_full: Any

    @classmethod
    def of(cls, plan: Plan) -> "Scratch":
        """What to allocate."""
        config, units, score_slots = plan.config, plan.config.units, plan.config.score_stages
        scores = plgpu.TMEM((TILE_ROWS, config.block), jnp.float32)
        weights = plgpu.TMEM((TILE_ROWS, config.block), plan.dtype, packed=True)
        # The second product takes its weights from where the score was: S becomes the weights, D becomes dS.
        tiles = {name: plgpu.RefUnion(scores, weights) if name in plan.sums else scores for name in plan.weight_names}
        if plan.shared_unit:
            # All weights take the place of D, so that the next S can be computed meanwhile.
            tiles = {"value": scores, "key": plgpu.RefUnion(scores, dict.fromkeys(plan.sums, weights))}
        return cls(
            out=plan.tiled((plan.compute_warpgroups, TILE_ROWS, plan.piece), plan.out_dtype),
            rows=plgpu.SMEM((units, TILE_ROWS), jnp.float32) if plan.online else None,
            scores=[[tiles] * score_slots] * units,
            sums=[{name: plgpu.TMEM((TILE_ROWS, plan.dim), jnp.float32) for name in plan.sums}] * units,
            score_free=None if config.products_in_order else tensor_barrier(num_barriers=units * score_slots),
            score_full=tensor_barrier(num_barriers=units * score_slots),
            score_read=tensor_barrier(num_arrivals=config.warpgroups) if plan.shared_unit else None,
            gradient_full=tensor_barrier() if plan.shared_unit else None,
            gradient_read=tensor_barrier(num_arrivals=config.warpgroups) if plan.shared_unit else None,
            sum_full=tensor_barrier(num_barriers=units),
            weights_full=tensor_barrier(num_arrivals=config.warpgroups, num_barriers=units * score_slots),
        )


def for_static(slot, number: int, body, carry=None):
    """``body(slot, carry) -> carry`` with a Python integer, 0 or 1: tensor memory is addressed statically."""
    if number == 1:
        return body(0, carry)
    return lax.cond(slot == 0, lambda carry: body(0, carry), lambda carry: body(1, carry), carry)
