"""What turns a tile of scores into weights inside a kernel."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.mosaic.activations import KERNEL_ACTIVATIONS


class Score(NamedTuple):
    """The score function of a kernel; arrays are float32 of any shape.

    Attributes:
      weights: (S, polynomial) -> weights, for the forward pass.
      backward: (S, polynomial) -> (weights, derivative);
        the gradient of S is ``derivative * D``, D that of the weights.
      value_scale: factor of the sum over ``weights y``, applied once at the end.
      key_scale: factor of the sum over ``dS x``.
    """

    weights: Callable[[jax.Array, bool], jax.Array]
    backward: Callable[[jax.Array, bool], tuple[jax.Array, jax.Array]]
    value_scale: float
    key_scale: float


def pointwise(activation: str, pre_scale: float, post_scale: float) -> Score:
    """gdpa: ``weights = Act(pre_scale S)``, with ``post_scale`` and the inner derivative left to the end."""
    function = KERNEL_ACTIVATIONS[activation]

    def scaled(s):
        return s if pre_scale == 1 else s * pre_scale

    def weights(s, polynomial):
        return function(scaled(s), polynomial)[0]

    def backward(s, polynomial):
        return function(scaled(s), polynomial)

    return Score(weights, backward, post_scale, pre_scale * post_scale)


def in_chunks(function: Callable, eighths: int, *arrays: jax.Array, width: int = 16):
    """``function(*arrays, polynomial)`` by chunks of columns, the last `eighths` of them with the polynomial.

    A chunk is finished before the next is begun: a whole tile at once would keep every intermediate array alive, and
    the registers would not do.
    """
    columns = arrays[0].shape[1]
    split = columns - columns * eighths // 8
    results = [
        function(*(x[:, start : start + width] for x in arrays), start >= split) for start in range(0, columns, width)
    ]
    return jax.tree.map(lambda *chunks: jnp.concatenate(chunks, axis=1), *results)
