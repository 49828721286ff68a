"""What window_attention costs, counted, and the shapes to measure it at."""

import dataclasses

import numpy as np
from jaxtyping import Int

from pallas_kernels.costs import Cost, attention_cost


def pairs(lengths: Int[np.ndarray, " batch"], window: tuple[int, int]) -> int:
    """(query, key) pairs inside the window, summed over examples: ``-left <= j - i <= right`` and both in range.

    A sequence of n rows has ``n - o`` pairs at distance ``o``, hence ``n + sum_{o=1..min(side, n-1)} (n - o)`` a side.
    """
    lengths = np.asarray(lengths, np.int64)
    total = lengths.sum()
    for side in window:
        reach = np.clip(lengths - 1, 0, side)
        total += (reach * lengths - reach * (reach + 1) // 2).sum()
    return int(total)


def cost(
    lengths: Int[np.ndarray, " batch"], *, window: tuple[int, int], heads: int, dim: int, itemsize: int = 2
) -> Cost:
    """FLOPs and bytes of self-attention inside `window` over sequences of the given lengths.

    Bytes: the forward pass reads q, k, v and writes the output and a float32 log-sum-exp for each row and head; the
    backward pass reads q, k, v, the output, the cotangent, log-sum-exp and delta, and writes three gradients.
    """
    rows = int(lengths.sum())
    unit = heads * dim * itemsize
    log_sums = 4 * heads * rows
    return attention_cost(
        pairs(lengths, window),
        heads,
        dim,
        forward_bytes=unit * 4 * rows + log_sums,
        backward_bytes=unit * 8 * rows + 2 * log_sums,
    )


@dataclasses.dataclass(frozen=True)
class Shape:
    """One case to measure.

    Attributes:
      batch: examples.
      max_length: longest sequence, rows.
      jagged: lengths uniform in ``[1, max_length]``; otherwise all are `max_length`.
      window: (left, right), inclusive.
      heads: heads.
      dim: width of a head.
    """

    batch: int
    max_length: int
    jagged: bool
    window: tuple[int, int]
    heads: int = 4
    dim: int = 128


SHAPES = tuple(Shape(1152, 1024, True, (w, w), dim=dim) for w in (50, 100) for dim in (128, 64, 32)) + tuple(
    Shape(4, length, False, window, heads=16) for length in (4096, 8192, 32768) for window in ((128, 128), (1024, 0))
)
"""Kunlun's windows over user histories, and the long sequences that other kernels publish."""
