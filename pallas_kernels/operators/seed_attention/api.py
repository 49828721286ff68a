"""seed_attention: softmax attention of a few queries over the jagged rows of each example."""

import math

from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.dispatch import Implementation
from pallas_kernels.mosaic import launch
from pallas_kernels.operators.seed_attention import mosaic, reference, triton, xla

IMPLEMENTATIONS = (
    Implementation("mosaic", mosaic.seed_attention, launch.refusal),
    Implementation("triton", triton.seed_attention, triton.refusal),
    Implementation("xla", xla.seed_attention),
    Implementation("reference", reference.seed_attention),
)


def seed_attention(
    q: Float[Array, "seeds heads dim"] | Float[Array, "batch seeds heads dim"],
    k: Float[Array, "rows heads dim"],
    v: Float[Array, "rows heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    *,
    scale: float | None = None,
    implementation: str | None = None,
) -> Float[Array, "batch seeds heads dim"]:
    """``out[b] = softmax(scale * q k_b^T) v_b`` for each seed and head, over the rows of example ``b``.

    Scores and sums are float32 (float64 for float64 operands), and so is the sum over the batch that the gradient of
    q needs. Reverse-mode differentiable once in q, k and v. An example with no rows gives zeros and takes no gradient.

    Source: the attention of Kunlun's HSP, and of PMA (R).

    Args:
      q: the seeds, the same for every example, or each example's own.
      k: keys, packed as in `pallas_kernels.jagged`, dtype of q. Rows past an example's length may hold anything,
        NaN included; they are not read and their gradient is zero.
      v: values, packed likewise.
      row_splits: int32, first row of each example and the end, multiples of 8.
      lengths: int32, rows of each example.
      scale: factor of the scores; None is ``1 / sqrt(dim)``.
      implementation: ``"mosaic"`` (fused, for compute capabilities 9.0, 10.0 and 10.3, 16-bit operands and heads of
        width 32, 64 or 128), ``"triton"`` (fused, for GPUs of compute capability 8.0 and above, 16-bit operands and
        heads of width 16, 32, 64 or 128; an extra, ``kunlun_jax[triton]``), ``"xla"``, ``"reference"``, or None to
        pick by platform (logged once).

    Returns:
      Outputs in the dtype of q.

    Raises:
      TypeError: operands of different or non-floating dtypes, offsets that are not int32.
      ValueError: shapes that do not fit, an unknown implementation or one that cannot run here.
    """
    dispatch.check_operands("seed_attention", {"q": q, "k": k, "v": v}, row_splits, lengths)
    if q.ndim not in (3, 4) or k.ndim != 3 or k.shape != v.shape:
        raise ValueError(
            f"seed_attention: q, k, v have shapes {q.shape}, {k.shape}, {v.shape}; they must be [seeds, heads, dim] or "
            "[batch, seeds, heads, dim], and twice [rows, heads, dim]"
        )
    if q.ndim == 4 and q.shape[0] != lengths.shape[0]:
        raise ValueError(
            f"seed_attention: q holds {q.shape[0]} examples and lengths {lengths.shape[0]}; they must be equal"
        )
    function = dispatch.choose("seed_attention", implementation, IMPLEMENTATIONS, q)
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    return function(q, k, v, row_splits, lengths, scale=factor)
