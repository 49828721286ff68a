"""The chip that a Triton kernel is built for: the one at hand, one that is not there, or none and the interpreter."""

import contextlib
import contextvars
import dataclasses
import functools
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from pallas_kernels.triton import blocks, interpreter

DIMS = (16, 32, 64, 128)
DTYPES = (jnp.bfloat16, jnp.float16)
LEAST_CAPABILITY = 80
LAST_OF_JAX_0_11 = (0, 4, 1)
"""The newest jax-triton known to us, which does not lower on jax 0.12."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A chip.

    Attributes:
      capability: ten times its compute capability, 80 for an A100.
      interpreted: whether the kernel runs in Triton's interpreter on the CPU.
      sizes: block sizes of every pass in place of the built-in ones.
    """

    capability: int
    interpreted: bool = False
    sizes: blocks.Block | None = None

    def block(self, direction: str, dim: int) -> blocks.Block:
        """Block sizes of a pass ("forward", "dq" or "dkv") for heads of width `dim`."""
        if self.sizes is not None:
            return self.sizes
        return blocks.INTERPRETED if self.interpreted else blocks.block(direction, dim)


_chosen: contextvars.ContextVar[Target | None] = contextvars.ContextVar("triton_target", default=None)


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


def interpret() -> contextlib.AbstractContextManager[None]:
    """Kernels traced inside run in Triton's interpreter on the CPU. See `build_for` on caches.

    Needs triton, and neither jax-triton nor torch.
    """
    return build_for(Target(LEAST_CAPABILITY, interpreted=True))


def current() -> Target | str:
    """The chip to build for, or why there is none."""
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    device = jax.devices()[0]
    if device.platform != "gpu":
        return (
            f"the default device is a {device.platform}, and the kernels need a GPU of compute capability 8.0 or more"
        )
    version = str(device.compute_capability)
    capability = _capability(version)
    if capability is None:
        return f"the GPU ({device.device_kind}) is {version}, and the kernels are for NVIDIA's"
    if capability < LEAST_CAPABILITY:
        return f"the GPU ({device.device_kind}) has compute capability {version}, and the kernels need 8.0 or more"
    return missing() or Target(capability)


def _capability(version: str) -> int | None:
    """80 for "8.0"; None for what is not a compute capability, such as another maker's "gfx942"."""
    parts = version.split(".")
    return 10 * int(parts[0]) + int(parts[1]) if len(parts) == 2 and all(part.isdigit() for part in parts) else None


def missing() -> str | None:
    """What is missing and how to install it, or None; nothing is imported."""
    for name in ("triton", "jax_triton"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed: pip install kunlun_jax[triton]"
    version = importlib.metadata.version("jax-triton")
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if jax.__version_info__ >= (0, 12) and numbers <= LAST_OF_JAX_0_11:
        return f"jax-triton {version} does not lower on jax {jax.__version__}: pip install kunlun_jax[triton]"
    return None


def refusal(q: jax.Array) -> str | None:
    """Why the kernels cannot run on such queries here, or None."""
    chip = current()
    if isinstance(chip, str):
        return chip
    if q.dtype not in DTYPES:
        return f"the kernels take bfloat16 and float16, and q has dtype {q.dtype}"
    if q.shape[-1] not in DIMS:
        return f"the kernels take heads of width {', '.join(map(str, DIMS))}, and q has {q.shape[-1]}"
    return None


def require(operator: str) -> Target:
    """The chip to build for.

    Raises:
      ValueError: there is none; the message gives the reason.
    """
    chip = current()
    if isinstance(chip, str):
        raise ValueError(f"{operator}: implementation='triton' cannot run: {chip}")
    return chip


@functools.cache
def kernels(interpreted: bool) -> types.ModuleType:
    """The module with the kernels, imported at the first call: once to be compiled, once to be interpreted.

    It has its own name and loader: Triton must decorate the function as written, not what an import hook (jaxtyping's,
    in the tests) makes of it.
    """
    from triton import knobs

    path = str(Path(__file__).parent / "kernels.py")
    name = f"{__package__}._kernels_{'interpreted' if interpreted else 'compiled'}"
    loader = importlib.machinery.SourceFileLoader(name, path)
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with knobs.runtime.scope():
        knobs.runtime.interpret = interpreted
        loader.exec_module(module)
    if interpreted:
        interpreter.bind(module)
    return module
