"""gdpa written as its definition: every row against every key of its example, one large array of scores.

For tests and small checks: it materialises ``[rows, heads, keys]`` scores and, with dense keys, a
``[rows, keys, heads, dim]`` gather; with jagged keys the scores are those of every row against every packed key.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import jagged
from pallas_kernels.activations import activation as activation_by_name
from pallas_kernels.dispatch import accumulator


def gdpa(
    q: Float[Array, "rows heads dim"],
    k: Float[Array, "batch keys heads dim"],
    v: Float[Array, "batch keys heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    *,
    activation: str,
    pre_scale: float,
    post_scale: float,
    upcast: bool = True,
) -> Float[Array, "rows heads dim"]:
    """``Act(pre_scale q k^T) v post_scale`` row by row; see `pallas_kernels.gdpa`.

    With ``upcast=False`` scores, activations and sums are kept in the dtype of the operands: what a plain bfloat16
    program gives, the yardstick for a kernel's error.
    """
    dtype = accumulator(q.dtype) if upcast else q.dtype
    mask = jagged.row_mask(row_splits, lengths, q.shape[0])
    example = jnp.minimum(jagged.example_ids(row_splits, q.shape[0]), lengths.shape[0] - 1)
    queries = jagged.zero_padding(q, mask).astype(dtype)
    keys, values = k.astype(dtype)[example], v.astype(dtype)[example]
    scores = pre_scale * jnp.einsum("rhd,rkhd->rhk", queries, keys)
    out = post_scale * jnp.einsum("rhk,rkhd->rhd", activation_by_name(activation).value(scores), values)
    return jagged.zero_padding(out, mask).astype(q.dtype)


def gdpa_jagged(
    q: Float[Array, "rows heads dim"],
    k: Float[Array, "key_rows heads dim"],
    v: Float[Array, "key_rows heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    key_splits: Int[Array, " splits"],
    key_lengths: Int[Array, " batch"],
    *,
    activation: str,
    pre_scale: float,
    post_scale: float,
    upcast: bool = True,
) -> Float[Array, "rows heads dim"]:
    """The same against packed keys and values, under a brute-force mask of the pairs of one example."""
    dtype = accumulator(q.dtype) if upcast else q.dtype
    mask, key_mask = (
        jagged.row_mask(splits, count, x.shape[0])
        for splits, count, x in ((row_splits, lengths, q), (key_splits, key_lengths, k))
    )
    example, key_example = (jagged.example_ids(s, x.shape[0]) for s, x in ((row_splits, q), (key_splits, k)))
    pairs = mask[:, None] & key_mask[None, :] & (example[:, None] == key_example[None, :])
    queries = jagged.zero_padding(q, mask).astype(dtype)
    keys, values = (jagged.zero_padding(x, key_mask).astype(dtype) for x in (k, v))
    scores = pre_scale * jnp.einsum("rhd,khd->rhk", queries, keys)
    weights = activation_by_name(activation).value(scores)
    weights = jnp.where(pairs[:, None, :], weights, jnp.zeros((), dtype))
    out = post_scale * jnp.einsum("rhk,khd->rhd", weights, values)
    # The weights of padding rows are zero, but a cotangent of NaN there must not meet them.
    return jagged.zero_padding(out, mask).astype(q.dtype)
