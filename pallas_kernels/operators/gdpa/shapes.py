"""What gdpa costs, counted, and the shapes to measure it at."""

import dataclasses

import numpy as np
from jaxtyping import Int

from pallas_kernels.costs import Cost, attention_cost


def cost(
    lengths: Int[np.ndarray, " batch"],
    *,
    keys: int | Int[np.ndarray, " batch"] | None,
    heads: int,
    dim: int,
    itemsize: int = 2,
) -> Cost:
    """FLOPs and bytes of queries of the given lengths against the keys and values of their example.

    Every query of an example meets all of its keys. Bytes: the forward pass reads q, k, v and writes the output; the
    backward pass reads q, k, v and the cotangent and writes three gradients. The dense keys of an example without rows
    count, too: their gradient is written.

    Args:
      lengths: queries of each example.
      keys: keys of each example: a number for dense keys, lengths for jagged ones, None for those of the queries.
      heads: heads.
      dim: width of a head.
      itemsize: bytes of an element.
    """
    lengths = np.asarray(lengths, np.int64)
    key_lengths = lengths if keys is None else np.broadcast_to(np.asarray(keys, np.int64), lengths.shape)
    rows, key_rows = int(lengths.sum()), int(key_lengths.sum())
    unit = heads * dim * itemsize
    return attention_cost(
        int((lengths * key_lengths).sum()),
        heads,
        dim,
        forward_bytes=unit * (2 * rows + 2 * key_rows),
        backward_bytes=unit * (3 * rows + 4 * key_rows),
    )


@dataclasses.dataclass(frozen=True)
class Shape:
    """One case to measure.

    Attributes:
      batch: examples.
      max_length: longest sequence, rows.
      sparsity: 1 for full lengths; ``s`` for lengths uniform in ``[max(1, (2 s - 1) max_length), max_length]``.
      keys: dense keys per example (F of the personalized FFN); None for self attention, with keys as jagged as queries.
      heads: heads.
      dim: width of a head.
      activation: name in `pallas_kernels.activations`.
    """

    batch: int
    max_length: int
    sparsity: float
    keys: int | None
    heads: int = 4
    dim: int = 128
    activation: str = "gelu"


LENGTHS = (256, 512, 1024, 2048)

SHAPES = (
    tuple(Shape(1152, length, sparsity, keys) for keys in (256, 128) for length in LENGTHS for sparsity in (1.0, 0.5))
    + tuple(
        Shape(1152, 1024, 0.5, 256, dim=dim, activation=activation)
        for dim in (64, 32)
        for activation in ("gelu", "silu", "relu")
    )
    + tuple(Shape(1152, length, sparsity, None) for length in LENGTHS for sparsity in (1.0, 0.5))
)
"""The personalized FFN as published, narrower heads under three activations, and self attention."""
