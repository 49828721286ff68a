"""The block of the personalized FFN with its forward pass in one Mosaic kernel (`block_sm90`, `block_sm100`).

The backward pass is made of existing parts: XLA's norms, which read rows anyway, around the kernels for dq and for dk
with dv. It keeps q, k, v and z, and recomputes q'.

When it pays, by counted bytes: separate norms move a row through memory eight times, the fused pass three times, but it
streams the keys of all heads past every 128 rows, from the second-level cache. At H100's 3.35 TB/s, 5.5 TB/s from that
cache (a published measurement, not ours) and 512 channels, 128 rows take 41 us the first way and, the second way, 18
with 256 keys and 31 with 512; with 1024 they would take 55.
"""

import dataclasses
import functools
import importlib
import types

import jax
from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch, jagged
from pallas_kernels.mosaic import launch, schedule, target
from pallas_kernels.mosaic.config import SHARED_MEMORY, Config, Sm90Config, Sm100Config
from pallas_kernels.operators.gdpa import mosaic
from pallas_kernels.operators.gdpa.norms import EPSILON, layer_norm, rms_norm

MOST_KEYS = 512
"""Most keys with which fusing pays, see above."""
_MOST_STAGES = 4


def kernel_of(chip: target.Target) -> types.ModuleType:
    """The kernel of a generation; Mosaic is imported only where one is built."""
    return importlib.import_module(f"pallas_kernels.operators.gdpa.block_{chip.generation}")


def config_for(chip: target.Target, heads: int, dim: int, itemsize: int, activation: str) -> Config | None:
    """Block sizes with as many slots as fit into shared memory; None if not even two do."""
    from pallas_kernels.mosaic import tuning  # imports Mosaic

    share = tuning.polynomial_share(tuning.activation_class(activation), chip.generation)
    config = {
        "sm90": Sm90Config(block=64, polynomial=share, ping_pong=False),
        "sm100": Sm100Config(block=64, polynomial=share, units=1, score_stages=2),
    }[chip.generation]
    if chip.interpreted:
        config = config.interpreted()
    for stages in range(_MOST_STAGES, 1, -1):
        fits = dataclasses.replace(config, stages=stages)
        if kernel_of(chip).shared_memory(heads, dim, itemsize, fits) <= SHARED_MEMORY:
            return fits
    return None


def refusal(q: jax.Array, k: jax.Array, v: jax.Array, row_splits: jax.Array, lengths: jax.Array) -> str | None:
    """Why the fused pass cannot run, or would not pay, on these operands here; None if it can."""
    reason = launch.refusal(q)
    if reason is not None:
        return reason
    if q.ndim != 3 or k.ndim != 4 or k.shape != v.shape or k.shape[-2:] != q.shape[-2:]:
        return f"q, k, v have shapes {q.shape}, {k.shape}, {v.shape}"
    if k.shape[1] > MOST_KEYS:
        return f"it does not pay beyond {MOST_KEYS} keys, and there are {k.shape[1]}"
    _, heads, dim = q.shape
    if config_for(launch.chip_for("gdpa_block"), heads, dim, q.dtype.itemsize, "gelu") is None:
        return f"rows of {heads} heads of width {dim} do not fit into shared memory"
    return None


def gdpa_block(
    q: Float[Array, "rows heads dim"],
    k: Float[Array, "batch keys heads dim"],
    v: Float[Array, "batch keys heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    *,
    activation: str,
    pre_scale: float,
    post_scale: float,
) -> Float[Array, "rows heads dim"]:
    """See `pallas_kernels.gdpa_block`, which asks `refusal` first; rows without an event are zero."""
    dispatch.check_operands("gdpa_block", {"q": q, "k": k, "v": v}, row_splits, lengths)
    rows = q.shape[0]
    q = launch.fill(q, 0)
    k, v = launch.fill(k, 1), launch.fill(v, 1)
    static = mosaic.Static.of(q, k.shape[1], activation, pre_scale, post_scale, operator="gdpa_block")
    out: jax.Array = _block(static, q, k, v, row_splits, lengths)
    return out[:rows]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _block(static, q, k, v, row_splits, lengths):
    return _forward(static, q, k, v, row_splits, lengths)[0]


@launch.lowered_once
def _forward(static, q, k, v, row_splits, lengths):
    kernel, (batch, keys, heads, dim) = kernel_of(static.chip), k.shape
    config = config_for(static.chip, heads, dim, q.dtype.itemsize, static.activation)
    assert config is not None  # `refusal` asked
    queries = schedule.packed(row_splits, lengths, q.shape[0])
    work = schedule.work_list(queries, schedule.dense(batch, keys), item_rows=kernel.ITEM_ROWS, balance=False)
    out, z = kernel.attend(
        q,
        *(x.reshape(batch * keys, heads, dim) for x in (k, v)),
        work,
        score=static.score,
        epsilon=EPSILON,
        ragged=keys % config.block != 0,
        config=config,
        processors=static.chip.processors,
    )
    return out, (q, k, v, row_splits, lengths, z)


@launch.lowered_once
def _backward(static, saved, d_out):
    q, k, v, row_splits, lengths, z = saved
    d_out = d_out.astype(q.dtype)
    normed, pull_normed = jax.vjp(layer_norm, q)
    (d_z,) = jax.vjp(rms_norm, z)[1](d_out)
    flat = [x.reshape(-1, *x.shape[2:]) for x in (k, v)]
    d_normed, *d_weights = mosaic.backward(static, (normed, *flat, (row_splits, lengths, None, None)), d_z)[:3]
    # Rows without an event may hold NaN, and so may their cotangents; neither the norms nor the kernels mix rows.
    dq = jagged.zero_gaps(pull_normed(d_normed + d_z)[0] + d_out, row_splits, lengths)
    return dq, *(x.reshape(k.shape) for x in d_weights), None, None


_block.defvjp(_forward, _backward)
