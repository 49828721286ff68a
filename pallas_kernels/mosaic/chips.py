"""The chips that the Mosaic kernels are written for: what a block may use. Their rates are in `roofline`."""

import dataclasses
from pathlib import Path

_DESCRIPTIONS = Path(__file__).parent / "chip_descriptions"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      name: its name here, and that of its description for the compiler.
      device_kind: what JAX calls the device.
      generation: the architecture as ptxas calls it; "a" has the instructions of this generation alone.
      multiprocessors: how many there are, the number of persistent blocks.
      shared_memory: most bytes of shared memory of a block, static and dynamic together.
      tensor_memory_columns: columns of tensor memory of a multiprocessor, 0 where there is none.
      registers: 32-bit registers of a multiprocessor.
    """

    name: str
    device_kind: str
    generation: str
    multiprocessors: int
    shared_memory: int
    tensor_memory_columns: int
    registers: int

    @property
    def description(self) -> str:
        """The chip for XLA's compiler, a `GpuTargetConfigProto` as text: with it, no device is asked."""
        return (_DESCRIPTIONS / f"{self.name}.txtpb").read_text()


H100 = Chip(
    name="h100",
    device_kind="NVIDIA H100 80GB HBM3",
    generation="sm_90a",
    multiprocessors=132,
    shared_memory=227 * 1024,
    tensor_memory_columns=0,
    registers=65536,
)

B200 = Chip(
    name="b200",
    device_kind="NVIDIA B200",
    generation="sm_100a",
    multiprocessors=148,
    shared_memory=227 * 1024,
    tensor_memory_columns=512,
    registers=65536,
)

CHIPS = {chip.name: chip for chip in (H100, B200)}
