"""window_attention written as its definition: every packed row against every other under a brute-force mask.

For tests and small checks: it materialises ``[heads, rows, rows]`` scores.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import jagged
from pallas_kernels.dispatch import accumulator


def window_mask(
    row_splits: Int[Array, " splits"], lengths: Int[Array, " batch"], rows: int, window: tuple[int, int]
) -> Bool[Array, "rows rows"]:
    """True where query row ``i`` may read key row ``j``: same example, both events, ``-left <= j - i <= right``."""
    left, right = window
    row = jnp.arange(rows, dtype=jnp.int32)
    offset = row[None, :] - row[:, None]
    example = jagged.example_ids(row_splits, rows)
    event = jagged.row_mask(row_splits, lengths, rows)
    same = (example[None, :] == example[:, None]) & event[None, :] & event[:, None]
    return same & (offset >= -left) & (offset <= right)


def each_head(x: Float[Array, "rows key_heads dim"], heads: int) -> Float[Array, "rows heads dim"]:
    """Keys or values with a head for each head of the queries."""
    return x if x.shape[1] == heads else jnp.repeat(x, heads // x.shape[1], axis=1)


def window_attention(
    q: Float[Array, "rows heads dim"],
    k: Float[Array, "rows key_heads dim"],
    v: Float[Array, "rows key_heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    *,
    window: tuple[int, int],
    scale: float,
    upcast: bool = True,
) -> Float[Array, "rows heads dim"]:
    """``softmax(scale q k^T) v`` under `window_mask`; see `pallas_kernels.window_attention`.

    With ``upcast=False`` everything is kept in the dtype of the operands: what a plain bfloat16 program gives.
    """
    dtype = accumulator(q.dtype) if upcast else q.dtype
    k, v = (each_head(x, q.shape[1]) for x in (k, v))
    event = jagged.row_mask(row_splits, lengths, q.shape[0])
    queries, keys, values = (jagged.zero_padding(x, event).astype(dtype) for x in (q, k, v))
    mask = window_mask(row_splits, lengths, q.shape[0], window)[None]
    scores = jnp.where(mask, scale * jnp.einsum("qhd,khd->hqk", queries, keys), -jnp.inf)
    highest = jnp.where(mask.any(-1, keepdims=True), scores.max(-1, keepdims=True), jnp.zeros((), dtype))
    weights = jnp.where(mask, jnp.exp(jnp.where(mask, scores, highest) - highest), jnp.zeros((), dtype))
    total = weights.sum(-1, keepdims=True)
    weights = weights / jnp.where(total > 0, total, jnp.ones((), dtype))
    # The mask on the output keeps a NaN in the cotangent of a padding row out of the gradients.
    return jagged.zero_padding(jnp.einsum("hqk,khd->qhd", weights, values), event).astype(q.dtype)
