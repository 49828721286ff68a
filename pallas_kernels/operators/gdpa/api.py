"""gdpa: attention with a pointwise activation in place of the softmax, jagged queries against dense or jagged keys."""

import math
from typing import Any

from jaxtyping import Array, Float, Int

from pallas_kernels import dispatch
from pallas_kernels.activations import activation as activation_by_name
from pallas_kernels.dispatch import Implementation
from pallas_kernels.mosaic import launch
from pallas_kernels.operators.gdpa import mosaic, reference, triton, xla, xla_jagged

FUSED = (
    Implementation("mosaic", mosaic.gdpa, launch.refusal),
    Implementation("triton", triton.gdpa, triton.refusal),
)
IMPLEMENTATIONS = (*FUSED, Implementation("xla", xla.gdpa), Implementation("reference", reference.gdpa))
IMPLEMENTATIONS_JAGGED = (
    *FUSED,
    Implementation("xla", xla_jagged.gdpa),
    Implementation("reference", reference.gdpa_jagged),
)


def gdpa(
    q: Float[Array, "rows heads dim"],
    k: Float[Array, "batch keys heads dim"] | Float[Array, "key_rows heads dim"],
    v: Float[Array, "batch keys heads dim"] | Float[Array, "key_rows heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    key_splits: Int[Array, " splits"] | None = None,
    key_lengths: Int[Array, " batch"] | None = None,
    *,
    activation: str = "gelu",
    pre_scale: float = 1.0,
    post_scale: float = 1.0,
    implementation: str | None = None,
) -> Float[Array, "rows heads dim"]:
    """``out = Act(pre_scale * q k^T) v * post_scale`` for each row and head, no normalisation.

    A row meets every key of its example and no other; the output of an example without keys is 0. Scores and sums are
    float32 (float64 for float64 operands). Reverse-mode differentiable once in q, k and v; the gradients of k and v are
    summed over the rows of their example.

    Source: Generalized Dot-Product Attention of Kunlun's PersonalizedFFN (R, M).

    Args:
      q: queries, packed as in `pallas_kernels.jagged`. Rows past an example's length may hold anything, NaN
        included; their output and gradient are zero.
      k: keys, dtype of q: either dense, equally many for each example, or packed like q by `key_splits` and
        `key_lengths`. Rows past an example's length may hold anything, NaN included; their gradient is zero.
      v: values, shape and dtype of k.
      row_splits: int32, first row of each example and the end, multiples of 8.
      lengths: int32, rows of each example.
      key_splits: int32, first row of each example in packed k and v and the end, multiples of 8. None with dense k.
        With packed k, None for both this and `key_lengths` means self attention: those of the queries.
      key_lengths: int32, keys of each example; None where `key_splits` is.
      activation: a name of `pallas_kernels.activations`.
      pre_scale: factor of the scores, before the activation.
      post_scale: factor of the output.
      implementation: ``"mosaic"`` (fused, for compute capabilities 9.0, 10.0 and 10.3, 16-bit operands and heads of
        width 32, 64 or 128; its scores go through approximations of `pallas_kernels.mosaic.activations`), ``"triton"``
        (fused, for GPUs of compute capability 8.0 and above, 16-bit operands and heads of width 16, 32, 64 or 128; an
        extra, ``kunlun_jax[triton]``), ``"xla"``, ``"reference"``, or None to pick by platform (logged once).

    Returns:
      Outputs in the dtype of q.

    Raises:
      TypeError: operands of different or non-floating dtypes, offsets that are not int32.
      ValueError: shapes that do not fit or are empty, key offsets with dense keys or one of them alone, a scale that
        is not a finite number, an unknown activation or implementation, or one that cannot run here (the message says
        why).
    """
    dispatch.check_operands("gdpa", {"q": q, "k": k, "v": v}, row_splits, lengths)
    if q.ndim != 3 or k.ndim not in (3, 4) or k.shape != v.shape:
        raise ValueError(
            f"gdpa: q, k, v have shapes {q.shape}, {k.shape}, {v.shape}; they must be [rows, heads, dim] and twice "
            "[batch, keys, heads, dim] or [key_rows, heads, dim]"
        )
    for name, array in (("q", q), ("k", k)):
        if 0 in array.shape:
            raise ValueError(f"gdpa: {name} has shape {array.shape}; no axis may be empty")
    key_offsets = _key_offsets(q, k, row_splits, lengths, key_splits, key_lengths)
    activation_by_name(activation)
    available = IMPLEMENTATIONS_JAGGED if key_offsets else IMPLEMENTATIONS
    function = dispatch.choose("gdpa", implementation, available, q)
    return function(
        q,
        k,
        v,
        row_splits,
        lengths,
        *key_offsets,
        activation=activation,
        pre_scale=_number("pre_scale", pre_scale),
        post_scale=_number("post_scale", post_scale),
    )


def _key_offsets(q, k, row_splits, lengths, key_splits, key_lengths) -> tuple[Int[Array, " n"], ...]:
    """First rows and lengths of packed keys; nothing for dense ones."""
    named = {"key_splits": key_splits, "key_lengths": key_lengths}
    given = [name for name, array in named.items() if array is not None]
    if k.ndim == 4:
        if given:
            raise ValueError(f"gdpa: {' and '.join(given)} must be None, since k has the dense shape {k.shape}")
        if k.shape[0] != lengths.shape[0]:
            raise ValueError(f"gdpa: k holds {k.shape[0]} examples and lengths {lengths.shape[0]}; they must be equal")
        return ()
    if not given:
        if k.shape[0] != q.shape[0]:
            raise ValueError(
                f"gdpa: k has {k.shape[0]} rows and q {q.shape[0]}; without key_splits and key_lengths they must be "
                "equal"
            )
        return row_splits, lengths
    if key_splits is None or key_lengths is None:
        missing = next(name for name in named if name not in given)
        raise ValueError(f"gdpa: {missing} is None and {given[0]} is not; give both or neither")
    dispatch.check_offsets("gdpa", key_splits, key_lengths, ("key_splits", "key_lengths"))
    if key_lengths.shape != lengths.shape:
        raise ValueError(
            f"gdpa: key_lengths holds {key_lengths.shape[0]} examples and lengths {lengths.shape[0]}; "
            "they must be equal"
        )
    return key_splits, key_lengths


def _number(name: str, value: Any) -> float:
    """`value` as a float: the scales are compiled in, so a traced one is refused as well."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"gdpa: {name}={value!r}; it must be a finite number, known when the call is traced")
    return number
