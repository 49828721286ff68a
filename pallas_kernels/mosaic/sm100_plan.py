"""What the warps of the Blackwell kernel agree on: what is known when it is traced, and how they count tiles.

Nobody tells a warp what to do: each walks the work list by itself, and comes to the same tiles in the same order.
"""

import dataclasses
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.numpy as jnp
from jax import lax

from pallas_kernels.mosaic import schedule, sm100_rows
from pallas_kernels.mosaic.config import Config
from pallas_kernels.mosaic.score import Score
from pallas_kernels.mosaic.sm100_rows import TILE_ROWS

SWIZZLE = 128
"""Bytes of a row that lie together in shared memory, at most."""

CHUNK = 32
"""Columns of scores that a compute warpgroup holds in registers at once."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A kernel as it is traced; the arguments of `sm100.attend`, and what follows from them.

    Attributes:
      score: the score function.
      sums: which sums to keep.
      config: block sizes.
      backward: there are two stationary arrays.
      ragged: the streamed rows may end within a tile.
      window: which streamed rows count.
      statistics: how many arrays of them there are.
      heads: of the stationary side.
      other_heads: of the streamed side.
      dim: width of a head.
      dtype: of the operands.
      out_dtype: of the results.
      blocks: persistent blocks.
    """

    score: Score
    sums: tuple[str, ...]
    config: Config
    backward: bool
    ragged: bool
    window: tuple[int, int] | None
    statistics: int
    heads: int
    other_heads: int
    dim: int
    dtype: Any
    out_dtype: Any
    blocks: int

    @property
    def online(self) -> bool:
        """Running maxima and sums are kept, and log-sum-exps are a result."""
        return not self.backward and self.score.online is not None

    @property
    def softmax(self) -> bool:
        """Weights depend on more than their score, and those of rows that hold nothing may be infinite."""
        return self.online or self.statistics > 0

    @property
    def own_statistics(self) -> bool:
        """Statistics belong to the stationary rows."""
        return self.statistics > 0 and "value" not in self.sums

    @property
    def other_statistics(self) -> bool:
        """Statistics belong to the streamed rows."""
        return self.statistics > 0 and "value" in self.sums

    @property
    def masks(self) -> bool:
        """Some scores may not count."""
        return self.ragged or self.softmax or self.window is not None

    @property
    def own_readers(self) -> int:
        """Who gives a stationary slot free: the issuing warp, and the compute warpgroup if it reads statistics."""
        return 2 if self.own_statistics else 1

    @property
    def other_readers(self) -> tuple[int, int]:
        """The same of each unit for the slots of x and y."""
        return 1, 2 if self.other_statistics else 1

    @property
    def weight_names(self) -> tuple[str, ...]:
        """What becomes of S, and of D."""
        return ("value", "key") if self.backward else ("value",)

    @property
    def share(self) -> int:
        """Stationary heads that share a streamed one."""
        return max(1, self.heads // self.other_heads)

    @property
    def group(self) -> int:
        """Streamed heads that share a stationary one, whose sums run over all of them."""
        return max(1, self.other_heads // self.heads)

    @property
    def piece(self) -> int:
        """Columns of a result that are written out at once."""
        return min(SWIZZLE // self.out_dtype.itemsize, self.dim)

    @property
    def chunk(self) -> int:
        """Columns of scores that are turned into weights at once."""
        return self.config.block // 8 if self.config.polynomial else CHUNK

    def score_tiles(self, tiles, unit: int, slot: int):
        """Tiles of S and, in the backward pass, D; and by name of the sum, the weights that replace them."""
        here = tiles[unit][slot]
        scores = [here[name][0] if name in self.sums else here[name] for name in self.weight_names]
        return scores, {name: here[name][1] for name in self.sums}

    def tiles_of(self, items, item):
        """Turns of the item, and streamed tiles of each turn and head."""
        turns = 1 if self.config.run == 1 else pl.cdiv(items[item, schedule.EXTENT], self.config.units * TILE_ROWS)
        block = self.config.block
        return turns, lax.div(items[item, schedule.OTHER_COUNT] + (block - 1), jnp.int32(block))

    def tiles_for(self, items, item, start, count):
        """Whether the unit with row `start` of an item works on its `count` tiles, and begin and end of those."""
        held = items[item, schedule.COUNT] - start
        if self.window is None:
            return held > 0, 0, count
        first = items[item, schedule.SHIFT] + start
        begin, end = sm100_rows.reached(first, held, count, self.config.block, self.window)
        return end > begin, begin, end

    def over_turns(self, turns, body, steps):
        """``body(turn, first, last, steps) -> steps``: streamed tiles come on the first turn, go on the last."""
        if self.config.run == 1:
            return body(0, True, True, steps)
        return lax.fori_loop(0, turns, lambda t, steps: body(t, t == 0, t == turns - 1, steps), steps)

    def over_heads(self, body, steps):
        """``body(i, steps) -> steps`` for the streamed heads that share a stationary one."""
        return body(0, steps) if self.group == 1 else lax.fori_loop(0, self.group, body, steps)


@dataclasses.dataclass(frozen=True)
class Refs:
    """What the warps of a block share.

    Attributes:
      items: the work list.
      used: its items in use.
      own: stationary arrays.
      other: streamed arrays.
      numbers: statistics.
      outputs: results.
      own_smem: slots of each unit for stationary tiles.
      other_smem: slots for streamed tiles.
      number_smem: slots for statistics, beside one or the other.
      out_smem: for each unit a tile to be written out.
      row_smem: for each unit a number of each row; None but for an online score.
      score_tmem: for each unit the slots for scores, see `Plan.score_tiles`.
      sum_tmem: for each unit the sums by name.
      own_full: stationary tiles have come, for each unit and slot, as all that follows that is for units.
      own_free: their readers are through.
      full: x and y have come, for each slot.
      free: their readers are through.
      score_full: scores have been computed.
      weights_full: weights lie in their place.
      score_free: those have been multiplied; None if the order of products is relied on.
      sum_full: all products are in the sums; for an online score, those of each step.
    """

    items: Any
    used: Any
    own: Any
    other: Any
    numbers: Any
    outputs: Any
    own_smem: Any
    other_smem: Any
    number_smem: Any
    out_smem: Any
    row_smem: Any
    score_tmem: Any
    sum_tmem: Any
    own_full: Any
    own_free: Any
    full: Any
    free: Any
    score_full: Any
    weights_full: Any
    score_free: Any
    sum_full: Any


def slot_of(step: jax.Array, number: int):
    """Slot of a step, of `number` slots."""
    return 0 if number == 1 else lax.rem(step, jnp.int32(number))


def for_static(slot, number: int, body, carry=None):
    """``body(slot, carry) -> carry`` with a Python integer, 0 or 1: tensor memory is addressed statically."""
    if number == 1:
        return body(0, carry)
    return lax.cond(slot == 0, lambda carry: body(0, carry), lambda carry: body(1, carry), carry)


def when(condition, body) -> None:
    """`pl.when` that knows what is true at trace time."""
    body() if condition is True else pl.when(condition)(body)
