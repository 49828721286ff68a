"""The chips that the Triton kernels are compiled for without one: what a block may use of them."""

from pallas_kernels.mosaic.chips import Chip


def _chip(name: str, device_kind: str, generation: str, multiprocessors: int, kilobytes: int) -> Chip:
    return Chip(
        name=name,
        device_kind=device_kind,
        generation=generation,
        multiprocessors=multiprocessors,
        shared_memory=kilobytes * 1024,
        tensor_memory_columns=0,
        registers=65536,
    )


CHIPS = {
    chip.name: chip
    for chip in (
        _chip("triton-sm80", "NVIDIA A100-SXM4-80GB", "sm_80", 108, 163),
        _chip("triton-sm89", "NVIDIA L4", "sm_89", 58, 99),
        _chip("triton-sm90", "NVIDIA H100 80GB HBM3", "sm_90a", 132, 227),
    )
}
"""Shared memory of a block as the CUDA programming guide has it by compute capability."""


def capability(chip: Chip) -> int:
    """80 for ``sm_80``."""
    return int(chip.generation.removeprefix("sm_").removesuffix("a"))
