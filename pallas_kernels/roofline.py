"""The least time in which a chip can do counted work: what a measured time is compared with.

Three units work in parallel, and none can finish its part of the work sooner than its rate allows:

    t >= max(FLOPs / peak, bytes / bandwidth, special operations / (16 multiprocessors clock))

The last is the special-function units, 16 results per clock in each multiprocessor: with heads of 128, a tanh for each
score takes half as long as both matrix products on H100, and as long on B200.
"""

import dataclasses
from typing import Literal

from pallas_kernels.chips import Chip
from pallas_kernels.costs import Cost

Pass = Literal["forward", "backward"]

SPECIAL_PER_CLOCK = 16
"""Results of the special-function units of one multiprocessor per clock."""

_SPECIAL = {
    "gelu": (1, 2),
    "gelu_tanh": (1, 1),
    "silu": (1, 1),
    "softmax": (1, 1),
    "relu": (0, 0),
    "leaky_relu": (0, 0),
    "relu_squared": (0, 0),
    "hardswish": (0, 0),
    "identity": (0, 0),
}
"""Special-function operations per score, forward and backward. An erf counts as one, which is what its exponential
takes; its derivative needs another. silu counts as the tanh that it can be written with."""


@dataclasses.dataclass(frozen=True)
class Limit:
    """The least time of one pass, by what limits it.

    Attributes:
      matrix: seconds of the matrix products.
      memory: seconds of moving the bytes.
      special: seconds of the special-function units.
      flops: counted FLOPs of the pass.
    """

    matrix: float
    memory: float
    special: float
    flops: int

    @property
    def seconds(self) -> float:
        """The largest of the three."""
        return max(self.matrix, self.memory, self.special)

    @property
    def flops_per_second(self) -> float:
        """The rate at that time, FLOP/s; 0 for a pass without work."""
        return self.flops / self.seconds if self.seconds else 0.0

    @property
    def bound(self) -> str:
        """Which of the three it is: "matrix", "memory" or "special"."""
        return max(("matrix", "memory", "special"), key=lambda name: getattr(self, name))


def limit(cost: Cost, pass_: Pass, chip: Chip, *, heads: int, activation: str, polynomial: float = 0.0) -> Limit:
    """The roofline of one pass of an operator.

    Args:
      cost: counted work of the call, see `pallas_kernels.costs`.
      pass_: "forward" or "backward".
      chip: its rates.
      heads: how many, since `cost.pairs` counts the pairs of one.
      activation: a name of `pallas_kernels.activations`, or "softmax".
      polynomial: share of the scores, 0 to 1, whose activation is a polynomial on the FMA units instead.

    Raises:
      ValueError: an unknown pass or activation, or a share outside 0 to 1.
    """
    if pass_ not in ("forward", "backward"):
        raise ValueError(f"pass_={pass_!r}; it must be 'forward' or 'backward'")
    if activation not in _SPECIAL:
        raise ValueError(
            f"activation={activation!r} has no count of special functions; there are {', '.join(_SPECIAL)}"
        )
    if not 0 <= polynomial <= 1:
        raise ValueError(f"polynomial={polynomial}; it must be 0 to 1")
    forward = pass_ == "forward"
    flops = cost.forward_flops if forward else cost.backward_flops
    moved = cost.forward_bytes if forward else cost.backward_bytes
    special = cost.pairs * heads * _SPECIAL[activation][0 if forward else 1] * (1 - polynomial)
    special /= SPECIAL_PER_CLOCK * chip.multiprocessors * chip.clock
    return Limit(flops / chip.flops, moved / chip.bandwidth, special, flops)
