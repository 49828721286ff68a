"""What seed_attention costs, counted, and the shapes to measure it at."""

import dataclasses

import numpy as np
from jaxtyping import Int

from pallas_kernels.costs import Cost, attention_cost


def cost(lengths: Int[np.ndarray, " batch"], *, seeds: int, heads: int, dim: int, itemsize: int = 2) -> Cost:
    """FLOPs and bytes of `seeds` shared queries against jagged keys and values of the given lengths.

    Every seed meets every row once, so the pairs are ``seeds * sum(lengths)``. Bytes: the forward pass reads q once and
    k, v, and writes the output and a float32 log-sum-exp for each seed, head and example; the backward pass reads
    those, k, v, the cotangent and delta, and writes the gradients, the shared one of q once.
    """
    rows, outputs = int(lengths.sum()), len(lengths) * seeds
    unit = heads * dim * itemsize
    log_sums = 4 * heads * outputs
    return attention_cost(
        seeds * rows,
        heads,
        dim,
        forward_bytes=unit * (seeds + 2 * rows + outputs) + log_sums,
        backward_bytes=unit * (2 * seeds + 4 * rows + 2 * outputs) + 2 * log_sums,
    )


@dataclasses.dataclass(frozen=True)
class Shape:
    """One case to measure: `seeds` queries over sequences of a uniform length in ``[1, max_length]``."""

    batch: int
    seeds: int
    max_length: int
    heads: int = 4
    dim: int = 128


SHAPES = tuple(Shape(1152, seeds, 1000, dim=dim) for seeds in (32, 64, 256) for dim in (128, 64, 32))
"""The sizes of Kunlun's pooling and smaller ones."""
