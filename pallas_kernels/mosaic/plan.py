"""A streaming kernel while it is traced: what follows from its arguments, its arrays, and the slots for its tiles."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.mosaic import schedule
from pallas_kernels.mosaic.config import Config
from pallas_kernels.mosaic.schedule import WorkList
from pallas_kernels.mosaic.score import Score


def tiled_smem(shape: tuple[int, ...], dtype: jnp.dtype, swizzle: int):
    """Shared memory for tiles as the tensor cores read them; `swizzle` is how many bytes of a row stay together."""
    columns = swizzle // jnp.dtype(dtype).itemsize
    transforms = (
        plgpu.TilingTransform((8, columns)),  # pyright: ignore[reportAbstractUsage]
        plgpu.SwizzleTransform(swizzle),  # pyright: ignore[reportAbstractUsage]
    )
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def when(condition, body: Callable[[], None]) -> None:
    """`pl.when`, but without a branch where the condition is true at trace time."""
    body() if condition is True else pl.when(condition)(body)


def slot_of(step: jax.Array, number: int):
    """Slot of a step, of `number` slots."""
    return 0 if number == 1 else lax.rem(step, jnp.int32(number))


def tiles_of(item, block: int):
    """Tiles of `block` rows that stream past an item."""
    return lax.div(item[schedule.OTHER_COUNT] + (block - 1), jnp.int32(block))


@dataclasses.dataclass(frozen=True)
class Plan:
    """A kernel while it is traced: the arguments of `attend`, and what follows from them.

    Attributes:
      score: the score function.
      sums: which sums to keep.
      config: block sizes.
      backward: whether there are two stationary arrays.
      ragged: whether the streamed rows may end within a tile.
      window: which streamed rows count.
      tails: whether streamed tiles that contain the end of an example come from arrays of their own, zero behind it.
      statistics: how many arrays of them there are.
      heads: of the stationary side.
      other_heads: of the streamed side.
      dim: width of a head.
      dtype: of the operands.
      out_rows: rows of the results.
      out_dtype: of the results.
      blocks: persistent blocks.
    """

    score: Score
    sums: tuple[str, ...]
    config: Config
    backward: bool
    ragged: bool
    window: tuple[int, int] | None
    tails: bool
    statistics: int
    heads: int
    other_heads: int
    dim: int
    dtype: Any
    out_rows: int
    out_dtype: Any
    blocks: int

    TILE_ROWS: ClassVar[int]
    """Stationary rows of a unit."""

    @classmethod
    def of(cls, stationary, streamed, work, *, config, processors, statistics, out_rows, out_dtype, **given):
        """The plan for the arguments of `attend`, which documents the errors."""
        (rows, heads, dim), other_heads = stationary[0].shape, streamed[0].shape[1]
        plan = cls(
            config=config,
            backward=len(stationary) == 2,
            statistics=len(statistics),
            heads=heads,
            other_heads=other_heads,
            dim=dim,
            dtype=stationary[0].dtype,
            out_rows=out_rows or rows,
            out_dtype=jnp.dtype(out_dtype or stationary[0].dtype),
            blocks=max(1, min(processors, work.items.shape[0] * heads)),
            **given,
        )
        if heads * plan.group != other_heads * plan.share:
            raise ValueError(
                f"attend: {heads} heads stay and {other_heads} stream; one must be a multiple of the other"
            )
        for name, present in (
            ("window", plan.window),
            ("tails", plan.tails),
            ("statistics", statistics),
            ("score.online", plan.online),
        ):
            if config.run > 1 and present:
                raise ValueError(
                    f"attend: config.run={config.run} keeps streamed tiles, which rules out {name}; it must be 1"
                )
        return plan

    @property
    def online(self) -> bool:
        """Whether running maxima and sums are kept and log-sum-exps are a result."""
        return not self.backward and self.score.online is not None

    @property
    def softmax(self) -> bool:
        """Whether weights depend on more than their score; those of rows that hold nothing may then be infinite."""
        return self.online or self.statistics > 0

    @property
    def masks(self) -> bool:
        """Whether weights of some scores have to be replaced.

        Not where only rows of zeros stream past the end of an example, in x and in y: whatever finite weights
        those get, they add nothing to any sum.
        """
        return self.softmax or self.window is not None or (self.ragged and not self.tails)

    @property
    def own_statistics(self) -> bool:
        """Whether statistics belong to the stationary rows."""
        return self.statistics > 0 and "value" not in self.sums

    @property
    def other_statistics(self) -> bool:
        """Whether statistics belong to the streamed rows."""
        return self.statistics > 0 and "value" in self.sums

    @property
    def compute_warpgroups(self) -> int:
        """Warpgroups of a block that compute; one more serves them."""
        return self.config.units

    @property
    def own_readers(self) -> int:
        """How many readers free a stationary slot of a unit."""
        return 1

    @property
    def other_readers(self) -> tuple[int, int]:
        """How many of each unit free the slots of x and of y."""
        return 1, 1

    @property
    def share(self) -> int:
        """Stationary heads that share a streamed one."""
        return max(1, self.heads // self.other_heads)

    @property
    def group(self) -> int:
        """Streamed heads that share a stationary one, whose sums run over all of them."""
        return max(1, self.other_heads // self.heads)

    @property
    def results(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The sums, and the log-sum-exps of an online score."""
        sums = [jax.ShapeDtypeStruct((self.out_rows, self.heads, self.dim), self.out_dtype) for _ in self.sums]
        return (*sums, *[jax.ShapeDtypeStruct((self.heads, self.out_rows), jnp.float32)] * self.online)

    @property
    def load_columns(self) -> list[int]:
        """Columns of the work list that the loading warps read."""
        columns = [schedule.OTHER_COUNT, schedule.ROW, schedule.OTHER_ROW, schedule.OTHER_SECOND_ROW]
        columns += [schedule.OUT_ROW] * self.backward + [schedule.TAIL] * self.tails
        return columns + [schedule.EXTENT] * (self.config.run > 1)

    @property
    def compute_columns(self) -> list[int]:
        """Columns of the work list that the compute warpgroups read."""
        columns = [schedule.OTHER_COUNT, schedule.COUNT, schedule.EXTENT, schedule.OUT_ROW]
        return columns + [schedule.SHIFT] * (self.window is not None)

    def tiles_of(self, item):
        """Turns of the item, and streamed tiles of each turn and head."""
        turns = 1 if self.config.run == 1 else pl.cdiv(item[schedule.EXTENT], self.config.units * self.TILE_ROWS)
        return turns, tiles_of(item, self.config.block)

    def over_turns(self, turns, body, steps):
        """``body(turn, first, last, steps) -> steps``: streamed tiles arrive on the first turn, leave on the last."""
        if self.config.run == 1:
            return body(0, True, True, steps)
        return lax.fori_loop(0, turns, lambda t, steps: body(t, t == 0, t == turns - 1, steps), steps)

    def over_heads(self, body, steps):
        """``body(i, steps) -> steps`` for the streamed heads that share a stationary one."""
        return body(0, steps) if self.group == 1 else lax.fori_loop(0, self.group, body, steps)


class Operands(NamedTuple):
    """Arrays in global memory.

    Attributes:
      work: the work list.
      own: stationary arrays.
      other: streamed arrays.
      tails: their tails, if any.
      numbers: statistics.
      outputs: results.
    """

    work: WorkList
    own: Any
    other: Any
    tails: Any
    numbers: Any
    outputs: Any

    @classmethod
    def of(cls, refs, plan: Plan) -> "Operands":
        """The operands of a kernel called with the work list, stationary and streamed arrays, tails and statistics."""
        (items, used, *arrays), outputs = refs[: -len(plan.results)], refs[-len(plan.results) :]
        own = 1 + plan.backward
        tails, numbers = own + 2, own + 2 + 2 * plan.tails
        return cls(
            WorkList(items, used), arrays[:own], arrays[own:tails], arrays[tails:numbers], arrays[numbers:], outputs
        )


class Slots(NamedTuple):
    """Shared memory for what is loaded, with its barriers.

    Attributes:
      own: stationary tiles, by unit and slot.
      other: streamed tiles x and y, by slot.
      numbers: statistics, for one side or the other.
      free: readers of x and y are done, by slot.
      full: x and y have arrived.
      own_free: readers of the stationary tiles are done, by unit and slot.
      own_full: the stationary tiles have arrived.
    """

    own: Any
    other: Any
    numbers: Any
    free: Any
    full: Any
    own_free: Any
    own_full: Any

    @classmethod
    def of(cls, plan: Plan, tiled: Callable, free: Callable = plgpu.Barrier) -> "Slots":
        """What to allocate: ``tiled(shape)`` for tiles, and `free` for the barriers of readers."""
        config, units, stages, slots = plan.config, plan.config.units, plan.config.stages, plan.config.stationary_stages
        vector = (units, slots, plan.TILE_ROWS) if plan.own_statistics else (stages, config.block)
        copies = 1 + plan.backward + plan.own_statistics * plan.statistics
        other_copies = (1, 1 + plan.other_statistics * plan.statistics)
        return cls(
            own=[tiled((units, slots, plan.TILE_ROWS, plan.dim)) for _ in range(1 + plan.backward)],
            other=[tiled((stages, config.block, plan.dim))] * 2,
            numbers=[plgpu.SMEM(vector, jnp.float32)] * plan.statistics,
            free=[free(num_arrivals=units * readers, num_barriers=stages) for readers in plan.other_readers],
            full=[plgpu.Barrier(num_arrivals=copies, num_barriers=stages) for copies in other_copies],
            own_free=free(num_arrivals=plan.own_readers, num_barriers=units * slots),
            own_full=plgpu.Barrier(num_arrivals=copies, num_barriers=units * slots),
        )
