"""How long a kernel would take, predicted from its compiled instructions, its products and its bytes; no chip runs it.

Each pipe of a multiprocessor works in parallel with the others and takes, for one stationary tile of a unit,

    work of the tile / rate,     work = tiles that stream past it * (a trip of the inner loop) + what is around the loop

which gives two times for the whole kernel. If everything overlaps it takes as long as its slowest pipe: `overlapped`.
If no instruction of a thread runs beside a product it takes the sum of both: `apart`. Kernels are written so that two
units overlap, or a warp that issues products and one that has the score function.

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

import numpy as np

from pallas_kernels.chips import Chip
from pallas_kernels.compile_check.sass import Loop, compute_loop
from pallas_kernels.operators.gdpa.shapes import Shape, cost
from pallas_kernels.roofline import SPECIAL_PER_CLOCK

SHAPE = Shape(batch=1152, max_length=1024, sparsity=1.0, keys=256)
"""What is predicted: the personalized FFN as published, full lengths, so that no tile is masked. The
activation is that of the compiled kernel."""


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
_ROW = 2 * SHAPE.dim
"""Bytes of a row of a head, of 16-bit elements."""


@dataclasses.dataclass(frozen=True)
class Tiling:
    """What a kernel works on.

    Attributes:
      direction: "forward", "dq" or "dkv".
      rows: stationary rows of a unit.
      block: streamed rows of a trip.
      units: stationary tiles at once.
      warpgroups: that share a unit, each with a part of the scores.
      run: stationary tiles of a unit for which the streamed ones are loaded once.
      issues: whether the units' threads issue their own products, as on sm_90.
    """

    direction: str
    rows: int
    block: int
    units: int
    run: int
    issues: bool
    warpgroups: int = 1

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
    """Of one kernel for `SHAPE`.

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


def _moved(direction: str) -> int:
    """Bytes that a pass reads and writes in device memory, by `gdpa.shapes.cost` of `SHAPE`."""
    lengths = np.full(SHAPE.batch, SHAPE.max_length)
    whole = cost(lengths, keys=SHAPE.keys, heads=SHAPE.heads, dim=SHAPE.dim)
    if direction == "forward":
        return whole.forward_bytes
    # What a backward pass moves, without the results of the other kernel.
    rows, keys = SHAPE.batch * SHAPE.max_length, SHAPE.batch * (SHAPE.keys or SHAPE.max_length)
    return whole.backward_bytes - SHAPE.heads * _ROW * (2 * keys if direction == "dq" else rows)


def predict(loops: Sequence[Loop], tiling: Tiling, chip: Chip) -> Prediction | None:
    """The prediction for a gdpa kernel with heads of `SHAPE.dim`.

    Args:
      loops: `sass.inner_loops` of it.
      tiling: its block sizes, which divide `SHAPE`.
      chip: whose datasheet is used.

    Raises:
      ValueError: a tile that does not divide the rows of its side.

    Returns:
      None where no loop has a score function, as with an activation that takes no instruction.
    """
    loop = compute_loop(loops)
    if loop is None:
        return None
    own, other = SHAPE.max_length, SHAPE.keys or SHAPE.max_length
    if tiling.direction == "dkv":
        own, other = other, own
    for name, whole, part in (("rows", own, tiling.rows), ("block", other, tiling.block)):
        if whole % part:
            raise ValueError(f"predict: {name} is {part}; it must divide {whole}")
    trips, tiles = other // tiling.block, SHAPE.batch * SHAPE.heads * (own // tiling.rows)
    products = 2 * tiling.rows * other * SHAPE.dim * (tiling.scores + tiling.sums)
    clocks = _threads(loop, loops, tiling, trips)
    clocks["shared"] = _shared_bytes(tiling, other) / RATES["shared"].per_clock
    pipes = {"matrix": products * tiles / chip.flops, "memory": _moved(tiling.direction) / chip.bandwidth}
    pipes |= {name: tiles / chip.multiprocessors * number / chip.clock for name, number in clocks.items()}
    return Prediction(pipes, products * tiles)


def _threads(loop: Loop, loops: Sequence[Loop], tiling: Tiling, trips: int) -> dict[str, float]:
    """Clocks of the pipes that threads use, for a stationary tile."""
    operations: dict[str, int] = dict.fromkeys(THREADS, 0)
    for kinds, times in ((loop.shortest, trips), (loop.around, 1)):
        for kind, number in kinds.items():
            operations["issue"] += times * number
            if kind in LANES:
                pipe, lanes = LANES[kind]
                operations[pipe] += times * number * lanes
    clocks = {name: number * tiling.warpgroups * _UNIT / RATES[name].per_clock for name, number in operations.items()}
    if not tiling.issues:
        issuing = max((other.instructions for other in loops if "matrix" in other.kinds), default=0)
        clocks["issue"] += trips * issuing / tiling.units
    return clocks


def _shared_bytes(tiling: Tiling, other: int) -> float:
    """Bytes of shared memory for a stationary tile, read and written.

    A product reads both operands for the scores; for the sums only the streamed one, since weights are in registers or
    tensor memory. An instruction is as wide as the product, so it reads each operand once.

    Args:
      tiling: block sizes.
      other: rows that stream past the tile.
    """
    read = other // tiling.block * tiling.scores * tiling.rows + (tiling.scores + tiling.sums) * other
    arrives = tiling.scores * tiling.rows + 2 * other / (tiling.units * tiling.run)
    staged = 2 * tiling.sums * tiling.rows  # written by threads, read by the copy
    return _ROW * (read + arrives + staged)


def backward(dq: Prediction, dkv: Prediction, chip: Chip) -> tuple[float, float]:
    """Share of the datasheet's peak of both kernels, one after the other: if all overlaps, and apart.

    Counted are the ten FLOPs of a backward pass that computes scores once, not the fourteen that both execute.
    """
    least = (dq.flops + dkv.flops) * 10 / 14 / chip.flops
    return least / (dq.overlapped + dkv.overlapped), least / (dq.apart + dkv.apart)
