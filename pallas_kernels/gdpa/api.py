"""gdpa: attention with a pointwise activation in place of the softmax, jagged queries against dense keys and values."""

from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.activations import activation as activation_by_name
from pallas_kernels.gdpa import reference, xla

IMPLEMENTATIONS = {"xla": xla.gdpa, "reference": reference.gdpa}


def gdpa(
    q: Float[Array, "rows heads dim"],
    k: Float[Array, "batch keys heads dim"],
    v: Float[Array, "batch keys heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    *,
    activation: str = "gelu",
    pre_scale: float = 1.0,
    post_scale: float = 1.0,
    implementation: str | None = None,
) -> Float[Array, "rows heads dim"]:
    """``out = Act(pre_scale * q k^T) v * post_scale`` for each row and head, no normalisation.

    Scores and sums are float32 (float64 for float64 operands). Reverse-mode differentiable once in q, k and v; the
    gradients of k and v are summed over the rows of their example.

    Source: Generalized Dot-Product Attention of Kunlun's PersonalizedFFN (R, M).

    Args:
      q: queries, packed as in `pallas_kernels.jagged`. Rows behind an example's length may hold anything, NaN
        included; their output and gradient are zero.
      k: keys of each example, dtype of q.
      v: values of each example, dtype of q.
      row_splits: int32, first row of each example and the end, multiples of 8.
      lengths: int32, rows of each example.
      activation: a name of `pallas_kernels.activations`.
      pre_scale: factor of the scores, before the activation.
      post_scale: factor of the output.
      implementation: ``"xla"``, ``"reference"``, or None to pick by platform (logged once).

    Returns:
      Outputs in the dtype of q.

    Raises:
      TypeError: operands of different or non-floating dtypes, offsets that are not int32.
      ValueError: shapes that do not fit, an unknown activation or implementation.
    """
    dispatch.check_operands("gdpa", {"q": q, "k": k, "v": v}, row_splits, lengths)
    if q.ndim != 3 or k.ndim != 4 or k.shape != v.shape:
        raise ValueError(
            f"gdpa: q, k, v have shapes {q.shape}, {k.shape}, {v.shape}; they must be [rows, heads, dim] and twice "
            "[batch, keys, heads, dim]"
        )
    if k.shape[0] != lengths.shape[0]:
        raise ValueError(f"gdpa: k holds {k.shape[0]} examples and lengths {lengths.shape[0]}; they must be equal")
    activation_by_name(activation)
    function = dispatch.choose("gdpa", implementation, IMPLEMENTATIONS)
    return function(
        q,
        k,
        v,
        row_splits,
        lengths,
        activation=activation,
        pre_scale=float(pre_scale),
        post_scale=float(post_scale),
    )
