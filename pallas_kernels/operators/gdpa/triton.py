"""gdpa as Triton kernels, for GPUs of compute capability 8.0 and above: `pallas_kernels.triton`, three times.

Forward: the queries stay, keys and values stream. dq: queries and cotangent stay, keys and values stream. dk and dv:
keys and values stay, queries and cotangent stream. No program adds to what another one writes, so results are the same
bit for bit each time. The backward pass keeps only q, k and v and recomputes the scores.
"""

import functools

import jax
from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import vary_alike
from pallas_kernels.mosaic import schedule
from pallas_kernels.triton import launch, target
from pallas_kernels.triton.target import refusal

__all__ = ["gdpa", "refusal"]


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
) -> Float[Array, "rows heads dim"]:
    """See `pallas_kernels.gdpa`, which asks `refusal` first."""
    problem = launch.Problem(target.require("gdpa"), activation, pre_scale, post_scale)
    keys = None
    if k.ndim == 4:
        batch, keys, heads, dim = k.shape
        k, v = (x.reshape(batch * keys, heads, dim) for x in (k, v))
        q, k, v, row_splits, lengths = vary_alike(q, k, v, row_splits, lengths)
        offsets = (row_splits, lengths)
    else:
        assert key_splits is not None and key_lengths is not None
        q, k, v, *offsets = vary_alike(q, k, v, row_splits, lengths, key_splits, key_lengths)
    out: jax.Array = _gdpa(problem, keys, q, k, v, tuple(offsets))
    return out


def _sides(keys, q, k, offsets):
    row_splits, lengths, *key_offsets = offsets
    queries = schedule.packed(row_splits, lengths, q.shape[0])
    if keys is not None:
        return queries, schedule.dense(lengths.shape[0], keys)
    key_splits, key_lengths = key_offsets
    return queries, schedule.packed(key_splits, key_lengths, k.shape[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gdpa(problem, keys, q, k, v, offsets) -> jax.Array:
    return _forward(problem, keys, q, k, v, offsets)[0]


def _forward(problem, keys, q, k, v, offsets):
    out, _ = launch.forward(problem, q, k, v, *_sides(keys, q, k, offsets), balance=keys is None)
    return out, (q, k, v, offsets)


def _backward(problem, keys, saved, d_out):
    q, k, v, offsets = saved
    sides = _sides(keys, q, k, offsets)
    operands = (q, k, v, d_out.astype(q.dtype), (None, None))
    dq = launch.grad_queries(problem, *operands, *sides, balance=keys is None, dtype=q.dtype)
    dk, dv = launch.grad_keys(problem, *operands, *sides, balance=True)
    return dq, dk, dv, None


_gdpa.defvjp(_forward, _backward)
