"""gdpa as fused Mosaic GPU kernels: one streaming kernel, three times (`pallas_kernels.mosaic.sm90` and `sm100`).

Forward: the queries stay, keys and values stream. dq: queries and cotangent stay, keys and values stream. dk and dv:
keys and values stay, queries and cotangent stream; nobody adds to what another block writes, so results do not depend
on the order of the blocks. The scores are computed in each of the three, so the backward pass does 14 H d N FLOPs where
10 would do; in exchange it keeps q, k and v alone and is the same bit for bit each time.
"""

import dataclasses
import functools
import importlib
import types
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.jagged import ROW_ALIGNMENT
from pallas_kernels.mosaic import schedule, target
from pallas_kernels.mosaic.config import Config
from pallas_kernels.mosaic.score import pointwise

DIMS = (32, 64, 128)
DTYPES = (jnp.bfloat16, jnp.float16)


def configs_for(
    chip: target.Target, dtype: jnp.dtype, dim: int, keys: int | None, activation: str
) -> dict[str, Config]:
    """Block sizes of the three passes by name: those tuned on this device, else built-in ones.

    Args:
      chip: to run on.
      dtype: of the operands.
      dim: width of a head.
      keys: dense keys of an example, None for jagged ones.
      activation: its name.
    """
    from pallas_kernels.mosaic import tuning  # imports Mosaic

    found = {}
    for name in tuning.PASSES:
        held = tuning.JAGGED if keys is None else keys
        key = tuning.Key(name, dim, held, tuning.activation_class(activation), jnp.dtype(dtype).name)
        found[name] = (
            tuning.default(key, chip.generation)
            if chip.device_kind is None
            else tuning.lookup(key, chip.device_kind, Path(__file__).parent / "tuning")
        )
    return found


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


def kernel_of(chip: target.Target) -> types.ModuleType:
    """The streaming kernel of a generation; Mosaic is imported only where a kernel is built."""
    return importlib.import_module(f"pallas_kernels.mosaic.{chip.generation}")


def gdpa(
    q: Float[Array, "rows heads dim"],
    k: Float[Array, "batch keys heads dim"] | Float[Array, "key_rows heads dim"],
    v: Float[Array, "batch keys heads dim"] | Float[Array, "key_rows heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    key_splits: Int[Array, " splits"] | None = None,
    key_lengths: Int[Array, " batch"] | None = None,
    *,
    activation: str,
    pre_scale: float,
    post_scale: float,
    configs: Mapping[str, Config] | None = None,
) -> Float[Array, "rows heads dim"]:
    """See `pallas_kernels.gdpa.api.gdpa`, which asks `refusal` first; `configs` overrides the block sizes by pass."""
    rows = q.shape[0]
    # Capacities are multiples of 8 as a rule, and so is F; then nothing is copied here. A key of zeros with a value of
    # zeros adds nothing to any output and gets no part in any gradient that is kept.
    q = _fill(q, 0)
    keys = None
    if k.ndim == 4:
        k, v = _fill(k, 1), _fill(v, 1)
        batch, keys, heads, dim = k.shape
        k, v = (x.reshape(batch * keys, heads, dim) for x in (k, v))
    else:
        k, v = _fill(k, 0), _fill(v, 0)
    chip = target.current()
    if isinstance(chip, str):
        raise ValueError(f"gdpa: implementation='mosaic' cannot run: {chip}")
    found = configs_for(chip, q.dtype, q.shape[-1], keys, activation) | dict(configs or {})
    if chip.interpreted:
        found = {name: dataclasses.replace(config, **target.INTERPRETED) for name, config in found.items()}
    static = (activation, pre_scale, post_scale, keys, tuple(found.items()), chip)
    out: jax.Array = _gdpa(static, q, k, v, (row_splits, lengths, key_splits, key_lengths))
    return out[:rows]


def _fill(x: jax.Array, axis: int) -> jax.Array:
    missing = -x.shape[axis] % ROW_ALIGNMENT
    if missing == 0:
        return x
    return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])


def _sides(keys, q, k, offsets):
    row_splits, lengths, key_splits, key_lengths = offsets
    queries = schedule.packed(row_splits, lengths, q.shape[0])
    if keys is None:
        return queries, schedule.packed(key_splits, key_lengths, k.shape[0])
    return queries, schedule.dense(lengths.shape[0], keys)


def _run(stationary, streamed, sides, *, score, sums, config, chip, keys) -> tuple[jax.Array, ...]:
    """`keys`: dense keys that stream, None if what streams is jagged."""
    kernel = kernel_of(chip)
    if config.run > 1 and (keys is None or -(-keys // config.block) > config.stages):
        raise ValueError(
            f"gdpa: run={config.run} keeps all streamed tiles of an example, which needs dense keys in at most "
            f"stages={config.stages} tiles of block={config.block} rows; there are {keys} keys"
        )
    work = schedule.work_list(*sides, item_rows=config.units * config.run * kernel.TILE_ROWS, balance=keys is None)
    ragged = keys is None or keys % config.block != 0
    return kernel.attend(
        stationary,
        streamed,
        work,
        score=score,
        sums=sums,
        ragged=ragged,
        config=config,
        processors=chip.processors,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gdpa(static, q, k, v, offsets) -> jax.Array:
    return _forward(static, q, k, v, offsets)[0]


def _forward(static, q, k, v, offsets):
    activation, pre_scale, post_scale, keys, items, chip = static
    configs = dict(items)
    if keys is None:
        block = max(configs["forward"].block, configs["dq"].block)
        k, v = (schedule.clear_gaps(x, *offsets[2:], behind=block) for x in (k, v))
    score = pointwise(activation, pre_scale, post_scale)
    sides = _sides(keys, q, k, offsets)
    (out,) = _run((q,), (k, v), sides, score=score, sums=("value",), config=configs["forward"], chip=chip, keys=keys)
    return out, (q, k, v, offsets)


def _backward(static, saved, d_out):
    activation, pre_scale, post_scale, keys, items, chip = static
    configs = dict(items)
    q, k, v, offsets = saved
    row_splits, lengths, _, _ = offsets
    score = pointwise(activation, pre_scale, post_scale)
    sides = _sides(keys, q, k, offsets)
    q, d_out = (
        schedule.clear_gaps(x.astype(q.dtype), row_splits, lengths, behind=configs["dkv"].block) for x in (q, d_out)
    )
    (dq,) = _run((q, d_out), (k, v), sides, score=score, sums=("key",), config=configs["dq"], chip=chip, keys=keys)
    dk, dv = _run(
        (k, v), (q, d_out), sides[::-1], score=score, sums=("key", "value"), config=configs["dkv"], chip=chip, keys=None
    )
    return dq, dk, dv, None


_gdpa.defvjp(_forward, _backward)
