"""window_attention as Triton kernels, for GPUs of capability 8.0 and above: `pallas_kernels.triton`, three times.

A program streams the tiles from the oldest row that any of its rows meets to the newest; only those at the edges of the
window and of the example are masked. The backward pass keeps q, k, v, the output and the log-sum-exps.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import vary_alike
from pallas_kernels.mosaic import schedule
from pallas_kernels.triton import launch, target
from pallas_kernels.triton.target import refusal

__all__ = ["refusal", "window_attention"]


def window_attention(
    q: Float[Array, "rows heads dim"],
    k: Float[Array, "rows key_heads dim"],
    v: Float[Array, "rows key_heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    *,
    window: tuple[int, int],
    scale: float,
) -> Float[Array, "rows heads dim"]:
    """See `pallas_kernels.window_attention`, which asks `refusal` first."""
    problem = launch.Problem(target.require("window_attention"), "softmax", scale, window=window)
    # Heads of keys that several heads of queries read are repeated: the kernels expect one key head per query head.
    k, v = (x if x.shape[1] == q.shape[1] else jnp.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    out: jax.Array = _window_attention(problem, *vary_alike(q, k, v, row_splits, lengths))
    return out


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _window_attention(problem, q, k, v, row_splits, lengths) -> jax.Array:
    return _forward(problem, q, k, v, row_splits, lengths)[0]


def _forward(problem, q, k, v, row_splits, lengths):
    side = schedule.packed(row_splits, lengths, q.shape[0])
    out, log_sum = launch.forward(problem, q, k, v, side, side, balance=False)
    return out, (q, k, v, row_splits, lengths, out, log_sum)


def _backward(problem, saved, d_out):
    q, k, v, row_splits, lengths, out, log_sum = saved
    side = schedule.packed(row_splits, lengths, q.shape[0])
    # A cotangent on a padding row may be NaN; the kernels do not read it, nor its delta.
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1)
    operands = (q, k, v, d_out.astype(q.dtype), (log_sum, delta), side, side)
    dq = launch.grad_queries(problem, *operands, balance=False, dtype=q.dtype)
    dk, dv = launch.grad_keys(problem, *operands, balance=False)
    return dq, dk, dv, None, None


_window_attention.defvjp(_forward, _backward)
