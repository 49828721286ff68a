"""seed_attention as Triton kernels, for GPUs of capability 8.0 and above: `pallas_kernels.triton`, three times.

Shared seeds are read in place, for each example that they stay for or stream past. Their gradient is written for each
example separately, in float32, and then summed over the batch: no program adds to what another writes, so results are
the same bit for bit each time. The backward pass keeps q, k, v, the output and the log-sum-exps.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import vary_alike
from pallas_kernels.mosaic import schedule
from pallas_kernels.triton import launch, target
from pallas_kernels.triton.target import refusal

__all__ = ["refusal", "seed_attention"]


def seed_attention(
    q: Float[Array, "seeds heads dim"] | Float[Array, "batch seeds heads dim"],
    k: Float[Array, "rows heads dim"],
    v: Float[Array, "rows heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    *,
    scale: float,
) -> Float[Array, "batch seeds heads dim"]:
    """See `pallas_kernels.seed_attention`, which asks `refusal` first."""
    problem = launch.Problem(target.require("seed_attention"), "softmax", scale, shared=q.ndim == 3)
    out: jax.Array = _seed_attention(problem, *vary_alike(q, k, v, row_splits, lengths))
    return out


def _sides(q, k, row_splits, lengths):
    return schedule.dense(lengths.shape[0], q.shape[-3]), schedule.packed(row_splits, lengths, k.shape[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _seed_attention(problem, q, k, v, row_splits, lengths) -> jax.Array:
    return _forward(problem, q, k, v, row_splits, lengths)[0]


def _forward(problem, q, k, v, row_splits, lengths):
    rows = q.reshape(-1, *q.shape[-2:])
    out, log_sum = launch.forward(problem, rows, k, v, *_sides(q, k, row_splits, lengths), balance=True)
    out = out.reshape(lengths.shape[0], *q.shape[-3:])
    return out, (q, k, v, row_splits, lengths, out, log_sum)


def _backward(problem, saved, d_out):
    q, k, v, row_splits, lengths, out, log_sum = saved
    sides = _sides(q, k, row_splits, lengths)
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1).reshape(log_sum.shape)
    rows, d_rows = (x.astype(q.dtype).reshape(-1, *q.shape[-2:]) for x in (q, d_out))
    operands = (rows, k, v, d_rows, (log_sum, delta), *sides)
    dtype = jnp.dtype(jnp.float32) if problem.shared else q.dtype
    dq = launch.grad_queries(problem, *operands, balance=True, dtype=dtype).reshape(out.shape)
    dk, dv = launch.grad_keys(problem, *operands, balance=False)
    return dq.sum(axis=0).astype(q.dtype) if problem.shared else dq, dk, dv, None, None


_seed_attention.defvjp(_forward, _backward)
