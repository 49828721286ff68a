"""The running softmax of XLA implementations: partial results of tiles, merged slot by slot.

A slot holds a group of softmaxes: those of an example in seed_attention, of a query tile in window_attention. A chunk
of partial results touches consecutive slots, so only these are sliced out, updated and put back, and the cost of a step
does not depend on the number of slots.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import vary_like
from pallas_kernels.xla import tiles


class Running(NamedTuple):
    """Softmaxes in progress.

    Attributes:
      maximum: largest score so far; the lowest finite number if there was none.
      total: sum of ``exp(score - maximum)``.
      out: sum of ``exp(score - maximum) * value``.
    """

    maximum: Float[Array, "slots heads queries"]
    total: Float[Array, "slots heads queries"]
    out: Float[Array, "slots heads queries dim"]


def start(like: jax.Array, slots: int, heads: int, queries: int, dim: int, dtype: jnp.dtype) -> Running:
    """Softmaxes that have seen nothing; `like` is an array that the scores come from (for `jax.shard_map`)."""
    shape = (slots, heads, queries)
    # Finite, so that the difference of two of them is 0 and not NaN; masked scores are -inf and fall below it.
    lowest = jnp.full(shape, jnp.finfo(dtype).min, dtype)
    return Running(*vary_like(like, lowest, jnp.zeros(shape, dtype), jnp.zeros((*shape, dim), dtype)))


def merge(
    running: Running,
    scores: Float[Array, "chunk heads queries keys"],
    values: Float[Array, "chunk heads keys dim"],
    slot: Int[Array, " chunk"],
    first: Int[Array, ""],
) -> Running:
    """`running` after one more chunk of scores.

    Args:
      running: at least ``first + chunk`` slots.
      scores: -inf where masked; entries that are all masked change nothing.
      values: the values of those keys, finite everywhere.
      slot: slot of each entry, counted from `first`, 0 to chunk - 1; several entries may share one.
      first: first of the ``chunk`` consecutive slots that this chunk touches.
    """
    chunk = scores.shape[0]
    partial_max = jnp.maximum(scores.max(axis=-1), jnp.finfo(scores.dtype).min)
    weights = jnp.exp(scores - partial_max[..., None])
    partial_out = jnp.einsum(
        "chqk,chkd->chqd", weights.astype(values.dtype), values, preferred_element_type=scores.dtype
    )
    # The barrier makes the slices before the update, so that XLA need not copy all of `running` to keep them readable.
    old = Running(*jax.lax.optimization_barrier(tuple(jax.lax.dynamic_slice_in_dim(x, first, chunk) for x in running)))
    maximum = old.maximum.at[slot].max(partial_max, mode="promise_in_bounds", wrap_negative_indices=False)
    keep = jnp.exp(old.maximum - maximum)
    share = jnp.exp(partial_max - tiles.take(maximum, slot))
    total = tiles.add(old.total * keep, slot, weights.sum(axis=-1) * share)
    out = tiles.add(old.out * keep[..., None], slot, partial_out * share[..., None])
    new = Running(maximum, total, out)
    return Running(*(jax.lax.dynamic_update_slice_in_dim(x, y, first, 0) for x, y in zip(running, new, strict=True)))


def finish(running: Running) -> tuple[Float[Array, "slots heads queries dim"], Float[Array, "slots heads queries"]]:
    """Outputs and log-sum-exps; both 0 where every score was masked."""
    none = running.total == 0
    total = jnp.where(none, jnp.ones_like(running.total), running.total)
    log_sum = jnp.where(none, jnp.zeros_like(total), running.maximum + jnp.log(total))
    return running.out / total[..., None], log_sum
