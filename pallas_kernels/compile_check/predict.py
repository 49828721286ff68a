"""How long a kernel would take, predicted from its compiled instructions, its products and its bytes; no chip runs it.

Each pipe of a multiprocessor works in parallel with the others and takes, for one stationary tile of a unit,

    work of the tile / rate,     work = tiles that stream past it * (a trip of the inner loop) + what is around the loop

where a masked tile is a longer trip; `work` counts the tiles. That gives two times for the whole kernel. If everything
overlaps it takes as long as its slowest pipe: `overlapped`. If no instruction of a thread runs beside a product it
takes the sum of both: `apart`. Kernels are written so that two units overlap, or a warp that issues products and one
that has the score function.

A unit is a warpgroup, with one warp at each of the four schedulers, so each scheduler issues an instruction of its loop
once, or twice where two warpgroups share the unit. On sm_90 a unit's loop holds its own products. On sm_100 another
warp issues them: its instructions count at one scheduler, and those of the other unit at another one.

Left out, so that either time may be too short: latencies, waits at barriers and the clocks in which one warp alone
cannot issue; what an item of the work list takes once for all of its turns; filling and draining; work that does not
divide evenly; the second-level cache; tensor memory; the loading warp; tails and the work list, which other kernels
make; a clock lowered for power.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pallas_kernels.chips import Chip
from pallas_kernels.compile_check.sass import Loop, compute_loop
from pallas_kernels.compile_check.work import Work
from pallas_kernels.roofline import SPECIAL_PER_CLOCK


class Rate(NamedTuple):
    """How fast a pipe of one multiprocessor is.

    Attributes:
      per_clock: operations of a thread, or bytes of shared memory, per clock.
      source: where the rate is published.
      assumed: what is not published there.
    """

    per_clock: int
    source: str
    assumed: str


_WHITE_PAPER = "NVIDIA H100 Tensor Core GPU Architecture, white paper: four schedulers, 32 threads a clock each"
_GUIDE = "CUDA C++ Programming Guide, Throughput of Native Arithmetic Instructions, compute capability 9.0"
_FLASH = "FlashAttention-4 (arXiv 2603.05451), for B200 and as on H100"

RATES: Mapping[str, Rate] = {
    "issue": Rate(128, _WHITE_PAPER, "the same on B200"),
    "fma": Rate(128, _GUIDE, "the same on B200; a packed instruction takes as long as two"),
    "mufu": Rate(SPECIAL_PER_CLOCK, f"{_GUIDE}; {_FLASH}", "a tanh takes as long as an exp2"),
    "alu": Rate(64, f"{_GUIDE}: compare, minimum, shift, logic", "the same on B200, and for moves and conversions"),
    "shared": Rate(128, _FLASH, "tiles that arrive and leave take a part of it"),
}
"""Pipe -> its rate (O what is assumed). Tensor cores ("matrix") and device memory ("memory") have those of the
datasheet, `pallas_kernels.chips`."""

LANES: Mapping[str, tuple[str, int]] = {
    "fma": ("fma", 1),
    "fma2": ("fma", 2),
    "mufu": ("mufu", 1),
    "minmax": ("alu", 1),
    "convert": ("alu", 1),
    "integer": ("alu", 1),
}
"""Kind of `sass.KINDS` -> its pipe, and operations of a thread. The others only take a slot to be issued."""

THREADS = ("issue", "fma", "mufu", "alu")
PRODUCTS = ("matrix", "shared")
_UNIT = 128
"""Threads of a warpgroup."""
_ITEM = 2
"""Bytes of an element of the operands."""


@dataclasses.dataclass(frozen=True)
class Tiling:
    """What a kernel works on.

    Attributes:
      direction: "forward", "dq" or "dkv".
      rows: stationary rows of a unit.
      block: streamed rows of a trip.
      units: stationary tiles at once.
      warpgroups: that share a unit, each with a part of the scores.
      norm_passes: reads and writes of a stationary tile of a head by norms, in loops of their own with a trip a head.
      dim: width of a head.
      issues: whether the units' threads issue their own products, as on sm_90.
    """

    direction: str
    rows: int
    block: int
    units: int
    dim: int
    issues: bool
    warpgroups: int = 1
    norm_passes: int = 0

    @property
    def scores(self) -> int:
        """Products for the scores in a trip: S, and D in a backward pass."""
        return 1 if self.direction == "forward" else 2

    @property
    def sums(self) -> int:
        """Products with the weights in a trip, and results: one, or dk and dv."""
        return 2 if self.direction == "dkv" else 1


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Of one kernel for a shape of `work`.

    Attributes:
      pipes: pipe -> seconds that its work takes.
      flops: of the products that it executes.
    """

    pipes: dict[str, float]
    flops: int

    @property
    def limit(self) -> str:
        """The slowest pipe."""
        return max(self.pipes, key=self.pipes.__getitem__)

    @property
    def overlapped(self) -> float:
        """Seconds if all pipes work at once."""
        return self.pipes[self.limit]

    @property
    def apart(self) -> float:
        """Seconds if products and the threads' instructions take turns."""
        products, threads = (max(self.pipes[name] for name in group) for group in (PRODUCTS, THREADS))
        return max(products + threads, self.pipes["memory"])

    def share(self, seconds: float, chip: Chip) -> float:
        """FLOP/s of the products, done in so many seconds, as a share of the datasheet's bf16 peak."""
        return self.flops / seconds / chip.flops

    def row(self) -> dict:
        """What is stored: seconds to four digits."""
        seconds = {"overlapped": self.overlapped, "apart": self.apart} | self.pipes
        return {"limit": self.limit, "flops": self.flops} | {name: float(f"{x:.4g}") for name, x in seconds.items()}


def predict(loops: Sequence[Loop], tiling: Tiling, work: Work, chip: Chip) -> Prediction | None:
    """The prediction for a kernel.

    Args:
      loops: `sass.inner_loops` of it.
      tiling: its block sizes.
      work: what it does, counted with the same block sizes.
      chip: whose datasheet is used.

    Returns:
      None where no loop has a score function, as with an activation that takes no instruction.
    """
    loop = compute_loop(loops)
    if loop is None:
        return None
    flops = 2 * tiling.rows * tiling.block * tiling.dim * (tiling.scores + tiling.sums) * work.trips
    clocks = _threads(loop, loops, tiling, work)
    clocks["shared"] = _shared_bytes(tiling, work) / RATES["shared"].per_clock
    pipes = {"matrix": flops / chip.flops, "memory": work.bytes / chip.bandwidth}
    pipes |= {name: number / chip.multiprocessors / chip.clock for name, number in clocks.items()}
    return Prediction(pipes, flops)


def _threads(loop: Loop, loops: Sequence[Loop], tiling: Tiling, work: Work) -> dict[str, float]:
    """Clocks of one multiprocessor's pipes that threads use, if it did all."""
    operations: dict[str, int] = dict.fromkeys(THREADS, 0)
    ways = [(loop.shortest, work.trips - work.edges), (loop.kinds, work.edges), (loop.around, work.tiles)]
    if tiling.norm_passes:
        ways += [(other.kinds, work.tiles) for other in loops if other is not loop and "matrix" not in other.kinds]
    for kinds, times in ways:
        for kind, number in kinds.items():
            operations["issue"] += times * number
            if kind in LANES:
                pipe, lanes = LANES[kind]
                operations[pipe] += times * number * lanes
    clocks = {name: number * tiling.warpgroups * _UNIT / RATES[name].per_clock for name, number in operations.items()}
    if not tiling.issues:
        issuing = max((other.instructions for other in loops if "matrix" in other.kinds), default=0)
        clocks["issue"] += work.trips * issuing / tiling.units
    return clocks


def _shared_bytes(tiling: Tiling, work: Work) -> int:
    """Bytes of shared memory that are read and written.

    A product reads both operands for the scores; for the sums only the streamed one, since weights are in registers or
    tensor memory. An instruction is as wide as the product, so it reads each operand once.
    """
    read = work.trips * (tiling.scores * tiling.rows + (tiling.scores + tiling.sums) * tiling.block)
    arrives = work.tiles * tiling.scores * tiling.rows + 2 * work.loaded
    staged = work.tiles * 2 * tiling.sums * tiling.rows  # written by threads, read by the copy
    norms = work.tiles * tiling.norm_passes * tiling.rows
    return _ITEM * tiling.dim * (read + arrives + staged + norms)


def backward(dq: Prediction, dkv: Prediction, chip: Chip) -> tuple[float, float]:
    """Share of the datasheet's peak of both gdpa kernels, one after the other: if all overlaps, and apart.

    Counted are the ten FLOPs of a backward pass that computes scores once, not the fourteen that both execute.
    """
    least = (dq.flops + dkv.flops) * 10 / 14 / chip.flops
    return least / (dq.overlapped + dkv.overlapped), least / (dq.apart + dkv.apart)
