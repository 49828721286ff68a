"""The analytic cost of one operator call: what a time is compared with.

XLA's own count cannot be used: it counts a loop body once, and a custom call not at all.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Cost(NamedTuple):
    """Counted work of one call.

    Attributes:
      pairs: valid (query, key) pairs of one head, summed over examples.
      forward_flops: ``4 heads dim pairs``, the two products of the forward pass.
      backward_flops: ``10 heads dim pairs``, the five products of a backward pass that recomputes the scores; a split
        backward that does 14 is still counted as 10.
      forward_bytes: bytes that the forward pass must move.
      backward_bytes: bytes that the backward pass must move.
    """

    pairs: int
    forward_flops: int
    backward_flops: int
    forward_bytes: int
    backward_bytes: int


def attention_cost(pairs: int, heads: int, dim: int, *, forward_bytes: int, backward_bytes: int) -> Cost:
    """`Cost` of an operator that scores `pairs` pairs in each of `heads` heads of width `dim`."""
    unit = heads * dim * pairs
    return Cost(pairs, 4 * unit, 10 * unit, forward_bytes, backward_bytes)


def drawn_lengths(batch: int, longest: int, sparsity: float) -> Int[np.ndarray, " batch"]:
    """Lengths to measure and to predict jagged sequences at, int32, each time the same.

    They are uniform in ``[max(1, (2 s - 1) longest), longest]`` for a sparsity s of .5 to 1.
    """
    low = max(1, int((2 * sparsity - 1) * longest))
    return np.random.default_rng(7).integers(low, longest, batch, np.int32, endpoint=True)
