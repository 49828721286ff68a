"""window_attention: softmax self-attention of jagged sequences inside a window, never across two examples."""

import math

from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.dispatch import Implementation
from pallas_kernels.mosaic import launch
from pallas_kernels.operators.window_attention import mosaic, reference, triton, xla

IMPLEMENTATIONS = (
    Implementation("mosaic", mosaic.window_attention, launch.refusal),
    Implementation("triton", triton.window_attention, triton.refusal),
    Implementation("xla", xla.window_attention),
    Implementation("reference", reference.window_attention),
)


def window_attention(
    q: Float[Array, "rows heads dim"],
    k: Float[Array, "rows key_heads dim"],
    v: Float[Array, "rows key_heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    *,
    window: tuple[int, int],
    scale: float | None = None,
    implementation: str | None = None,
) -> Float[Array, "rows heads dim"]:
    """``out[i] = softmax_j(scale q_i k_j^T) v_j`` over the rows ``j`` of i's example with ``-left <= j - i <= right``.

    Both bounds are inclusive: row 5 with ``window=(2, 1)`` reads rows 3, 4, 5 and 6, and with ``window=(0, 0)`` only
    itself; ``(w, 0)`` is causal. A window at least as long as the longest sequence is full attention. FlashAttention
    counts likewise; cuDNN leaves out the last row on the left. Scores and sums are float32 (float64 for float64
    operands). Reverse-mode differentiable once in q, k and v.

    Source: Kunlun's sliding-window self-attention (R).

    Args:
      q: queries, packed as in `pallas_kernels.jagged`. Rows past an example's length may hold anything, NaN
        included; their output and gradient are zero and nothing else depends on them.
      k: keys, packed likewise, dtype of q. Their heads divide those of q: head ``h`` of q reads head
        ``h // (heads / key_heads)`` of k and v (grouped queries).
      v: values, packed likewise, dtype of q.
      row_splits: int32, first row of each example and the end, multiples of 8.
      lengths: int32, rows of each example.
      window: rows read to the older side and to the newer side, both >= 0, the row itself not counted.
      scale: factor of the scores; None is ``1 / sqrt(dim)``.
      implementation: ``"mosaic"`` (fused, for compute capabilities 9.0, 10.0 and 10.3, 16-bit operands and heads of
        width 32, 64 or 128), ``"triton"`` (fused, for GPUs of compute capability 8.0 and above, 16-bit operands and
        heads of width 16, 32, 64 or 128; an extra, ``kunlun_jax[triton]``), ``"xla"``, ``"reference"``, or None to
        pick by platform (logged once).

    Returns:
      Outputs in the dtype of q.

    Raises:
      TypeError: operands of different or non-floating dtypes, offsets that are not int32.
      ValueError: shapes that do not fit, a negative window, an unknown implementation or one that cannot run here.
    """
    dispatch.check_operands("window_attention", {"q": q, "k": k, "v": v}, row_splits, lengths, grouped=True)
    if q.ndim != 3 or k.ndim != 3 or k.shape[0] != q.shape[0] or v.shape != k.shape:
        raise ValueError(
            f"window_attention: q, k, v have shapes {q.shape}, {k.shape}, {v.shape}; they must be [rows, heads, dim] "
            "and twice [rows, key_heads, dim]"
        )
    left, right = window
    if left < 0 or right < 0:
        raise ValueError(f"window_attention: window={window}; both sides must be 0 or more")
    function = dispatch.choose("window_attention", implementation, IMPLEMENTATIONS, q)
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    return function(q, k, v, row_splits, lengths, window=(int(left), int(right)), scale=factor)
