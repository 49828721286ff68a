"""seed_attention written as its definition: every seed against every packed row, masked to the rows of the example.

For tests and small checks: it materialises ``[batch, heads, seeds, rows]`` scores.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import jagged
from pallas_kernels.dispatch import accumulator


def seed_attention(
    q: Float[Array, "seeds heads dim"] | Float[Array, "batch seeds heads dim"],
    k: Float[Array, "rows heads dim"],
    v: Float[Array, "rows heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    *,
    scale: float,
    upcast: bool = True,
) -> Float[Array, "batch seeds heads dim"]:
    """``softmax(scale q k^T) v`` over the rows of each example; see `pallas_kernels.seed_attention`.

    With ``upcast=False`` everything is kept in the dtype of the operands: what a plain bfloat16 program gives.
    """
    dtype = accumulator(q.dtype) if upcast else q.dtype
    rows = k.shape[0]
    mask = jagged.row_mask(row_splits, lengths, rows)
    keys, values = (jagged.zero_padding(x, mask).astype(dtype) for x in (k, v))
    batch = jnp.arange(lengths.shape[0], dtype=jnp.int32)
    mine = (jagged.example_ids(row_splits, rows)[None, :] == batch[:, None]) & mask[None, :]
    mine = mine[:, None, None, :]
    queries = q.astype(dtype) if q.ndim == 4 else q.astype(dtype)[None]
    scores = scale * jnp.einsum("bshd,rhd->bhsr", queries, keys)
    scores = jnp.where(mine, scores, -jnp.inf)
    highest = jnp.where(mine.any(-1, keepdims=True), scores.max(-1, keepdims=True), jnp.zeros((), dtype))
    weights = jnp.where(mine, jnp.exp(jnp.where(mine, scores, highest) - highest), jnp.zeros((), dtype))
    total = weights.sum(-1, keepdims=True)
    weights = weights / jnp.where(total > 0, total, jnp.ones((), dtype))
    return jnp.einsum("bhsr,rhd->bshd", weights, values).astype(q.dtype)
