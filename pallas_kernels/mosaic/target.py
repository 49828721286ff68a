"""The chip that a Mosaic kernel is built for: the one at hand, one to interpret, or one that is not there."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator

import jax

from pallas_kernels.chips import B200, H100

GENERATIONS = {"sm90": H100, "sm100": B200}
"""Generation with kernels -> the chip of it that the interpreter stands in for."""
CAPABILITIES = {"9.0": "sm90", "10.0": "sm100", "10.3": "sm100"}
"""Compute capability of a GPU -> the generation whose kernels it takes; 10.3 is B300's."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A chip.

    Attributes:
      generation: ``"sm90"`` (Hopper) or ``"sm100"`` (Blackwell).
      processors: its multiprocessors.
      interpreted: whether the kernel runs in Pallas' interpreter on the CPU, which supports fewer instructions.
      device_kind: its name, by which tuned block sizes are looked up; None for the built-in ones.
    """

    generation: str
    processors: int
    interpreted: bool = False
    device_kind: str | None = None


_chosen: contextvars.ContextVar[Target | None] = contextvars.ContextVar("target", default=None)


@contextlib.contextmanager
def build_for(target: Target) -> Iterator[None]:
    """Kernels traced inside are built for `target`, whatever device is at hand.

    The choice is not part of the key of jax's caches: inside, trace only functions that were not traced outside.
    """
    token = _chosen.set(target)
    try:
        yield
    finally:
        _chosen.reset(token)


@contextlib.contextmanager
def interpret(generation: str, *, processors: int = 4, detect_races: bool = False) -> Iterator[None]:
    """Kernels traced and run inside go through Pallas' GPU interpreter on the CPU, built for a chip of `generation`.

    Races are printed as ``RACE DETECTED``, not raised. See `build_for` on caches.
    """
    import jax.experimental.pallas.mosaic_gpu as plgpu  # slow to import, and of use here alone

    device = jax.sharding.AbstractDevice(
        device_kind=GENERATIONS[generation].device_kind, platform="gpu", num_cores=processors
    )
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    parameters = plgpu.InterpretGPUParams(detect_races=detect_races)
    with (
        build_for(Target(generation, processors, interpreted=True)),
        jax.sharding.use_abstract_mesh(mesh),
        plgpu.force_gpu_interpret_mode(parameters),
    ):
        yield


def current() -> Target | str:
    """The chip to build for, or why there is none."""
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    device = jax.devices()[0]
    if device.platform != "gpu":
        return (
            f"the default device is a {device.platform}, and the kernels need a GPU of compute capability "
            f"{', '.join(CAPABILITIES)}"
        )
    capability = str(device.compute_capability)
    if capability not in CAPABILITIES:
        return (
            f"the GPU ({device.device_kind}) has compute capability {capability}, and there are kernels for "
            f"{', '.join(CAPABILITIES)}"
        )
    return Target(CAPABILITIES[capability], device.core_count, device_kind=device.device_kind)
