"""Block sizes of a Mosaic kernel, and where they come from."""

import dataclasses
from typing import ClassVar

from pallas_kernels.chips import B200, H100

SHARED_MEMORY = min(chip.shared_memory for chip in (H100, B200)) - 1024
"""Bytes that the tiles of a block may take on either generation, leaving room for the barriers."""

TENSOR_MEMORY = B200.tensor_memory_columns
"""Columns of tensor memory that a block may have, on sm_100."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of one streaming kernel of any generation; a tile's width is always the whole head.

    Attributes:
      block: streamed rows per step, a multiple of 16.
      stages: slots for streamed tiles, at least 2.
      stationary_stages: slots for stationary tiles of each compute warpgroup, 1 or 2.
      units: stationary tiles worked on at once, one for each compute warpgroup, 1 or 2.
      run: stationary tiles that a unit takes one after the other in one item. With more than 1, all streamed tiles of
        an example must fit in the slots at once; they are then loaded once for the whole run.
      polynomial: share of the scores, in eighths, whose activation uses polynomials on the FMA units instead of the
        special-function units.
    """

    block: int = 128
    stages: int = 2
    stationary_stages: int = 1
    units: int = 2
    run: int = 1
    polynomial: int = 0

    RANGES: ClassVar = {
        "stages": (2, 8),
        "stationary_stages": (1, 2),
        "units": (1, 2),
        "run": (1, 64),
        "polynomial": (0, 8),
    }

    def __post_init__(self):
        for name, (low, high) in self.RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"Config.{name} is {value}; it must be {low} to {high}")
        if self.block % 16 or not 16 <= self.block <= 256:
            raise ValueError(f"Config.block is {self.block}; it must be a multiple of 16, 16 to 256")

    def interpreted(self) -> "Config":
        """The config that the interpreter runs in place of this one."""
        return self


@dataclasses.dataclass(frozen=True)
class Sm90Config(Config):
    """Sizes of a kernel for Hopper.

    Attributes:
      weights_in_smem: pass the weights to the second product through shared memory and not in registers. Slower, but
        the only way that the interpreter supports.
      ping_pong: let the two compute warpgroups take turns on the tensor cores.
    """

    weights_in_smem: bool = False
    ping_pong: bool = True

    def interpreted(self) -> Config:
        """With the weights in shared memory."""
        return dataclasses.replace(self, weights_in_smem=True)


@dataclasses.dataclass(frozen=True)
class Sm100Config(Config):
    """Sizes of a kernel for Blackwell; its block is a multiple of 32, and of 64 with a share of polynomials.

    Attributes:
      score_stages: slots for the scores of each unit in tensor memory, 1 or 2. With 2 the products of one step overlap
        the score function of the next.
      products_in_order: rely on the tensor cores to run products in order of issue where one overwrites what another
        reads, instead of waiting in between. Published kernels do; the interpreter calls it a race.
      warpgroups: compute warpgroups of a unit, 1 or 2. Two share one unit of a backward pass: each takes half of the
        columns of its scores, so the block is a multiple of 64.
    """

    score_stages: int = 1
    products_in_order: bool = False
    warpgroups: int = 1

    RANGES: ClassVar = Config.RANGES | {"score_stages": (1, 2), "warpgroups": (1, 2)}

    def __post_init__(self):
        super().__post_init__()
        if self.block % 32 or (self.polynomial and self.block % 64):
            raise ValueError(f"{self}: block must be a multiple of 32, and of 64 for a share of polynomials")
        if self.warpgroups == 2 and (self.units != 1 or self.score_stages != 1 or self.block % 64):
            raise ValueError(f"{self}: warpgroups=2 needs units=1, score_stages=1, and a block that 64 divides")


CONFIGS: dict[str, type[Config]] = {"sm90": Sm90Config, "sm100": Sm100Config}
"""Generation -> sizes of its kernels."""


def check_room(config: Config, dim: int, *, shared_memory: int, tensor_memory: int = 0) -> None:
    """Refuses a kernel that needs more bytes of shared memory or columns of tensor memory than a block may have.

    Raises:
      ValueError: it does; the message names the config and both numbers.
    """
    for needed, limit, what in (
        (shared_memory, SHARED_MEMORY, "bytes of shared memory"),
        (tensor_memory, TENSOR_MEMORY, "columns of tensor memory"),
    ):
        if needed > limit:
            raise ValueError(f"{config} needs {needed} {what} at head width {dim}; there are {limit}")
