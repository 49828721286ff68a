"""gdpa written as its definition: every row against every key of its example, one large array of scores.

For tests and small checks: it materialises ``[rows, heads, keys]`` scores and a ``[rows, keys, heads, dim]`` gather.
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
    """``Act(pre_scale q k^T) v post_scale`` row by row; see `pallas_kernels.gdpa.api.gdpa`.

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
