"""What the operators do around the streaming Mosaic kernels: whether they can run, block sizes, and padding."""

import functools
import importlib
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.jagged import ROW_ALIGNMENT
from pallas_kernels.mosaic import target
from pallas_kernels.mosaic.config import Config

DIMS = (32, 64, 128)
DTYPES = (jnp.bfloat16, jnp.float16)


def refusal(q: jax.Array) -> str | None:
    """Why the kernels cannot run on such queries here, or None."""
    chip = target.current()
    if isinstance(chip, str):
        return chip
    if q.dtype not in DTYPES:
        return f"the kernels take bfloat16 and float16, and q has dtype {q.dtype}"
    if q.shape[-1] not in DIMS:
        return f"the kernels take heads of width {', '.join(map(str, DIMS))}, and q has {q.shape[-1]}"
    return None


def chip_for(operator: str) -> target.Target:
    """The chip to build for; ValueError where there is none, for callers that did not ask `refusal` first."""
    chip = target.current()
    if isinstance(chip, str):
        raise ValueError(f"{operator}: implementation='mosaic' cannot run: {chip}")
    return chip


def kernel_of(chip: target.Target) -> types.ModuleType:
    """The streaming kernel of a generation; Mosaic is imported only where a kernel is built."""
    return importlib.import_module(f"pallas_kernels.mosaic.{chip.generation}")


def lowered_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(static, *arrays)`, lowered once for all calls that are alike, as those of a model's layers are.

    Mosaic takes seconds to lower a kernel, and would do it for each call.

    Args:
      function: `static` is a hashable tuple of all that it depends on beside the arrays; its last item is the `Target`.
        Where that is interpreted the function is called as it is: how, is no part of the key of jax's caches.
    """
    once = jax.jit(function, static_argnums=0)

    @functools.wraps(function)
    def call(static: tuple[Any, ...], *arrays: Any) -> Any:
        return (function if static[-1].interpreted else once)(static, *arrays)

    return call


def configs_for(
    operator: str,
    chip: target.Target,
    dtype: jnp.dtype,
    dim: int,
    keys: int | None,
    activation: str,
    override: Mapping[str, Config] | None = None,
) -> dict[str, Config]:
    """Block sizes of the three passes by name: those tuned on this device, else built-in ones.

    Args:
      operator: its name, which is that of its folder.
      chip: to run on.
      dtype: of the operands.
      dim: width of a head.
      keys: see `tuning.Key`; None for jagged ones.
      activation: its name, or "softmax".
      override: configs by pass that take precedence.
    """
    from pallas_kernels.mosaic import tuning  # imports Mosaic

    found = {}
    for name in tuning.PASSES:
        held = tuning.JAGGED if keys is None else keys
        key = tuning.Key(name, dim, held, tuning.activation_class(activation), jnp.dtype(dtype).name)
        found[name] = (
            tuning.default(key, chip.generation, operator)
            if chip.device_kind is None
            else tuning.config_for(key, chip.device_kind, Path(__file__).parents[1] / "operators" / operator / "tuning")
        )
    found |= dict(override or {})
    if chip.interpreted:
        found = {name: config.interpreted() for name, config in found.items()}
    return found


def fill(x: jax.Array, axis: int) -> jax.Array:
    """`x` padded with zeros to a multiple of 8 along `axis`; usually it is one, and nothing is copied."""
    missing = -x.shape[axis] % ROW_ALIGNMENT
    if missing == 0:
        return x
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])


@functools.cache
def item_rows(chip: target.Target, config: Config) -> int:
    """Stationary rows of a work item."""
    return config.units * config.run * kernel_of(chip).TILE_ROWS


def delta(d_out: jax.Array, out: jax.Array) -> jax.Array:
    """``[heads, rows]`` float32: the sum of ``d_out out`` of each row, of ``[rows, heads, dim]``."""
    return jnp.einsum("rhd,rhd->hr", d_out, out, preferred_element_type=jnp.float32)
