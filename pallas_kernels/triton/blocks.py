"""Block sizes of the Triton kernels, by pass and width of a head."""

from typing import NamedTuple

PASSES = ("forward", "dq", "dkv")


class Block(NamedTuple):
    """Sizes for a kernel.

    Attributes:
      rows: stationary rows of a program, a power of two, at least 16.
      tile: streamed rows per step, likewise.
      warps: per program, 32 threads each.
      stages: tiles in flight.
    """

    rows: int
    tile: int
    warps: int
    stages: int


_TABLE = {
    ("forward", 16): Block(128, 64, 4, 3),
    ("forward", 32): Block(128, 64, 4, 3),
    ("forward", 64): Block(128, 64, 4, 3),
    ("forward", 128): Block(128, 64, 8, 3),
    ("dq", 16): Block(128, 64, 8, 2),
    ("dq", 32): Block(128, 32, 8, 2),
    ("dq", 64): Block(128, 64, 8, 2),
    ("dq", 128): Block(128, 32, 8, 2),
    ("dkv", 16): Block(128, 64, 8, 2),
    ("dkv", 32): Block(128, 64, 8, 2),
    ("dkv", 64): Block(128, 64, 8, 2),
    ("dkv", 128): Block(64, 32, 8, 3),
}
INTERPRETED = Block(32, 16, 4, 1)
"""In the interpreter time depends on programs and steps, not their sizes; several small tiles find the most errors."""


def block(direction: str, dim: int) -> Block:
    """Sizes for a pass and a head width.

    Chosen by what compiles without spills and fits the 99 KB of shared memory that a block has at compute capability
    8.6 and 8.9, so one table serves every chip; none was tuned on a GPU.
    """
    return _TABLE[direction, dim]
