"""The chips that kernels are written, compiled or measured for: what a block may use, and rates of the datasheet."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      name: its name on the command line and in the names of files.
      model: the product that the rates are those of.
      device_kind: what JAX calls the device.
      generation: ``"sm"`` and ten times the compute capability, such as ``"sm90"``.
      multiprocessors: how many there are, the number of persistent blocks.
      shared_memory: most bytes of shared memory of a block, static and dynamic together.
      flops: bf16 matrix products, FLOP/s.
      bandwidth: device memory, bytes/s.
      clock: of the multiprocessors, Hz.
      tensor_memory_columns: columns of tensor memory of a multiprocessor, 0 where there is none.
      registers: 32-bit registers of a multiprocessor.
    """

    name: str
    model: str
    device_kind: str
    generation: str
    multiprocessors: int
    shared_memory: int
    flops: float
    bandwidth: float
    clock: float
    tensor_memory_columns: int = 0
    registers: int = 65536

    @property
    def capability(self) -> int:
        """Ten times the compute capability."""
        return int(self.generation.removeprefix("sm"))

    @property
    def architecture(self) -> str:
        """The generation as ptxas spells it, from 9.0 on with the "a" of what this generation alone has."""
        return f"sm_{self.capability}{'a' if self.capability >= 90 else ''}"


A100 = Chip("a100", "A100 SXM", "NVIDIA A100-SXM4-80GB", "sm80", 108, 163 * 1024, 312e12, 2.04e12, 1.41e9)
L4 = Chip("l4", "L4", "NVIDIA L4", "sm89", 58, 99 * 1024, 121e12, 0.3e12, 2.04e9)
H100 = Chip("h100", "H100 SXM", "NVIDIA H100 80GB HBM3", "sm90", 132, 227 * 1024, 989e12, 3.35e12, 1.83e9)
H200 = Chip("h200", "H200", "NVIDIA H200", "sm90", 132, 227 * 1024, 989e12, 4.8e12, 1.83e9)
B200 = Chip("b200", "B200", "NVIDIA B200", "sm100", 148, 227 * 1024, 2250e12, 8e12, 1.85e9, tensor_memory_columns=512)

_BY_KIND = {chip.device_kind: chip for chip in (A100, L4, H100, H200, B200)}


def chip_of(device_kind: str) -> Chip | None:
    """A chip by the name that JAX gives the device; None for one whose datasheet is not here.

    So a card of another form, such as an H100 for PCIe, which is slower, is none of these.
    """
    return _BY_KIND.get(device_kind)
