"""What turns a tile of scores into weights inside a kernel."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.mosaic.activations import KERNEL_ACTIVATIONS

LOWEST = -1e30
"""The log-sum-exp of a row that met no key, and the initial running maximum: finite, so that no difference is NaN."""


class Score(NamedTuple):
    """The score function of a kernel; arrays are float32 of any shape.

    Attributes:
      weights: (S, polynomial) -> weights, for a forward pass that is not `online`.
      begin: (S, polynomial, statistics) -> (weights, kept), what a backward pass makes of S alone; `statistics` are
        the arrays that the kernel is called with, one number per row of queries, broadcast to the shape of S.
      finish: (kept, D, statistics) -> dS, D the gradient of the weights.
      value_scale: factor of the sum over ``weights y``, applied once at the end.
      key_scale: factor of the sum over ``dS x``.
      online: None, or for a softmax the factor of S in its base-2 exponents. The forward pass then keeps a running
        maximum m and sum l of ``exp2(online S - m)`` for each row, and divides by l at the end. It also gives
        ``m + log2(l)``, `LOWEST` for a row that met no key.
    """

    weights: Callable[[jax.Array, bool], jax.Array]
    begin: Callable[[jax.Array, bool, tuple[jax.Array, ...]], tuple[jax.Array, jax.Array]]
    finish: Callable[[jax.Array, jax.Array, tuple[jax.Array, ...]], jax.Array]
    value_scale: float
    key_scale: float
    online: float | None = None

    def backward(
        self, s: jax.Array, d: jax.Array, polynomial: bool, statistics: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, jax.Array]:
        """The weights and dS, at once."""
        weights, kept = self.begin(s, polynomial, statistics)
        return weights, self.finish(kept, d, statistics)


def pointwise(activation: str, pre_scale: float, post_scale: float) -> Score:
    """gdpa: ``weights = Act(pre_scale S)``; ``post_scale`` and the inner derivative's factor are left to the end."""
    function = KERNEL_ACTIVATIONS[activation]

    def scaled(s):
        return s if pre_scale == 1 else s * pre_scale

    def weights(s, polynomial):
        return function(scaled(s), polynomial)[0]

    def begin(s, polynomial, statistics):
        return function(scaled(s), polynomial)

    def finish(derivative, d, statistics):
        return derivative * d

    return Score(weights, begin, finish, post_scale, pre_scale * post_scale)


def softmax(scale: float) -> Score:
    """Attention, ``softmax(scale S)``: statistics are log-sum-exp to base 2, and delta.

    With ``delta = sum of dO O`` of a row, ``dS = P (D - delta)``; the factor `scale` is left to the end.
    """
    exponent = scale * math.log2(math.e)

    def weights(s, polynomial):
        raise ValueError("softmax gives no weights from single scores; the kernel must keep running sums")

    def begin(s, polynomial, statistics):
        log_sum, _ = statistics
        # Above 1 only by rounding of large scores, or in rows of another example, where it may be infinite.
        p = jnp.exp2(jnp.minimum(s * exponent - log_sum, 0.0))
        return p, p

    def finish(p, d, statistics):
        _, delta = statistics
        return p * (d - delta)

    return Score(weights, begin, finish, 1.0, scale, exponent)


def in_chunks(
    function: Callable, eighths: int, *arrays: jax.Array, width: int = 16, more: Callable[[slice], tuple] | None = None
):
    """``function(*arrays, polynomial)`` in chunks of columns, the last `eighths` of them with the polynomial.

    Each chunk is finished before the next begins: a whole tile at once would keep every intermediate array alive, and
    the registers would not suffice. For the same reason `more` makes the function's further arguments, before
    `polynomial`, only for the columns at hand.
    """
    columns = arrays[0].shape[1]
    split = columns - columns * eighths // 8
    results = []
    for start in range(0, columns, width):
        chunk = slice(start, start + width)
        further = more(chunk) if more is not None else ()
        results.append(function(*(x[:, chunk] for x in arrays), *further, start >= split))
    return jax.tree.map(lambda *chunks: jnp.concatenate(chunks, axis=1), *results)


def online_step(
    s: jax.Array, highest: jax.Array, total: jax.Array, factor: float, dtype: jnp.dtype, width: int = 16
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """One tile of a softmax that is computed tile by tile.

    Args:
      s: ``[rows, columns]`` float32 scores, -inf where there is none.
      highest: ``[rows]`` float32, the maximum of ``factor s`` so far, at first `LOWEST`.
      total: ``[rows]`` float32, the sum of ``exp2(factor s - highest)`` so far.
      factor: of the scores, positive.
      dtype: of the weights.
      width: columns at once, as in `in_chunks`.

    Returns:
      The weights ``exp2(factor s - highest)`` in `dtype`, the new `highest` and `total`, and for each row the
      factor by which to rescale what was summed with the old `highest`.
    """
    above = jnp.maximum(highest, s.max(axis=1) * factor)
    decay = jnp.exp2(highest - above)
    weights, partial = [], None
    for start in range(0, s.shape[1], width):
        chunk = s[:, start : start + width]
        p = jnp.exp2(chunk * factor - jax.lax.broadcast_in_dim(above, chunk.shape, [0]))
        weights.append(p.astype(dtype))
        partial = p if partial is None else partial + p
    assert partial is not None
    return jnp.concatenate(weights, axis=1), above, total * decay + partial.sum(axis=1), decay
