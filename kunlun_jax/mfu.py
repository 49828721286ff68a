"""Model FLOPs utilization: useful FLOPs of a step over its time, as a share of what the device can do.

Useful are the FLOPs of valid events (`kunlun_jax.flops`), counted as three forward passes for a training step: what is
padded, recomputed or rounded up to tiles does not count. The peak is the datasheet's where there is one, and else that
of a matrix product measured in the same process: on a CPU there is no other honest one.
"""

import dataclasses
import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.chips import chip_of

MEASURED_SIZE = 2048
"""Rows and columns of the matrices of a measured peak: 17 GFLOPs, a tenth of a second on two CPU cores."""
ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Peak:
    """What the devices of a run can do at most.

    Attributes:
      flops_per_second: of matrix products, all devices together.
      dtype: of their operands.
      source: "datasheet", or "measured" and what was.
      device: name of the kind of device.
      devices: how many.
    """

    flops_per_second: float
    dtype: str
    source: str
    device: str
    devices: int


PEAK_FIELDS = tuple(field.name for field in dataclasses.fields(Peak))


@functools.cache
def peak(dtype: jnp.dtype, devices: int = 1) -> Peak:
    """The peak of `devices` devices for operands of `dtype`; measured once a process where no datasheet is known.

    The datasheet's number is for 16-bit operands, which is what a GPU trains in; other dtypes are measured.
    """
    device = jax.devices()[0].device_kind
    chip = chip_of(device) if jax.default_backend() == "gpu" and jnp.dtype(dtype).itemsize == 2 else None
    if chip is not None:
        return Peak(devices * chip.flops, jnp.dtype(dtype).name, f"datasheet of {chip.model}", device, devices)
    # The cores of a CPU are one device's, however many devices it is told to look like.
    count = devices if jax.default_backend() == "gpu" else 1
    return Peak(
        count * measured_flops(dtype),
        jnp.dtype(dtype).name,
        f"measured, a product of {MEASURED_SIZE} x {MEASURED_SIZE} matrices, the best of {ROUNDS}",
        device,
        devices,
    )


def measured_flops(dtype: jnp.dtype) -> float:
    """FLOP/s of a matrix product on one device; the best of a few, for that is the peak."""
    size = MEASURED_SIZE
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.float32).astype(dtype)
    product = jax.jit(lambda a: a @ a).lower(a).compile()
    times = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        jax.block_until_ready(product(a))
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times[1:])


def utilization(
    training_flops_per_example: float, rates: list[tuple[int, float]], peak_flops_per_second: float
) -> dict[str, Any]:
    """MFU of a run, with the steps that it is of.

    Args:
      training_flops_per_example: useful FLOPs, forward and backward.
      rates: (step, examples/s since the line before) of each training line; the first holds the compilation and is left
        out where there is another.
      peak_flops_per_second: see `Peak`.

    Returns:
      ``mfu``, ``examples_per_second`` (the median over the window) and ``steps`` (first and last of the window).
    """
    window = rates[1:] or rates
    rate = statistics.median(value for _, value in window)
    return {
        "mfu": training_flops_per_example * rate / peak_flops_per_second,
        "examples_per_second": rate,
        "steps": [rates[0][0] + 1 if rates[1:] else 1, window[-1][0]],
    }
