"""What is measured: operators at the shapes that others publish, and toy ones for machines without a GPU.

Lengths are uniform in ``[max(1, (2 s - 1) max), max]`` for sparsity s, so all equal for s = 1 and half as long on
average for s = 0.5, drawn with a fixed seed. Examples start on multiples of 8 rows. Operands are N(0, 1), as under the
norm of the block, never zeros: chips are faster on zeros. Scores are scaled by ``1 / sqrt(dim)``, so they are about
N(0, 1), too, where activations curve.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import jagged
from pallas_kernels.costs import Cost, drawn_lengths
from pallas_kernels.operators.gdpa import shapes as gdpa_shapes
from pallas_kernels.operators.seed_attention import shapes as seed_shapes
from pallas_kernels.operators.window_attention import shapes as window_shapes

SUBSET = 4
"""Examples whose results are compared with float32."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One shape of one operator.

    Attributes:
      group: what it belongs to: "pffn 256", "pffn 128", "block", "self", "narrow", "seeds" or "window".
      batch: examples.
      max_length: longest sequence, rows.
      sparsity: see the module; 0.5 for half of the longest on average.
      keys: dense keys of an example; None where an example's own rows are its keys.
      seeds: queries shared by the batch; None for the other operators.
      window: rows read to either side, inclusive; None for the other operators.
      activation: a name of `pallas_kernels.activations`, or "softmax"; "" is softmax for seeds and windows, else gelu.
      block: whether gdpa stands between the norms and residuals of the personalized FFN's block.
    """

    group: str
    batch: int
    max_length: int
    sparsity: float
    keys: int | None = None
    seeds: int | None = None
    window: tuple[int, int] | None = None
    heads: int = 4
    dim: int = 128
    activation: str = ""
    block: bool = False

    def __post_init__(self):
        if not self.activation:
            object.__setattr__(self, "activation", "softmax" if self.seeds or self.window else "gelu")

    @property
    def operator(self) -> str:
        """Which it is of "gdpa", "gdpa_block", "seed_attention" and "window_attention"."""
        if self.block:
            return "gdpa_block"
        return "seed_attention" if self.seeds else "window_attention" if self.window else "gdpa"

    @property
    def name(self) -> str:
        """Tells it from all others, e.g. ``pffn 256: B1152 Q1024 s0.5 h4 d128 gelu``."""
        special = "" if self.seeds is None else f" n{self.seeds}"
        special += "" if self.window is None else f" w{self.window[0]},{self.window[1]}"
        return (
            f"{self.group}: B{self.batch} Q{self.max_length} s{self.sparsity:g} h{self.heads} d{self.dim} "
            f"{self.activation}{special}{'' if self.keys is None else f' F{self.keys}'}"
        )

    @property
    def scale(self) -> float:
        """Factor of the scores."""
        return 1 / math.sqrt(self.dim)

    def lengths(self) -> np.ndarray:
        """Rows of each example, int32 ``[batch]``."""
        return drawn_lengths(self.batch, self.max_length, self.sparsity)

    def compared(self) -> tuple[int, ...]:
        """Examples whose results are compared with float32: the longest, the shortest and the first few."""
        order = np.argsort(-self.lengths(), kind="stable")
        return tuple(sorted({int(order[0]), int(order[-1]), *range(min(SUBSET - 2, self.batch))}))

    def cost(self, lengths: np.ndarray) -> Cost:
        """Counted work of sequences of these lengths; of a block that of its gdpa, as if norms were free."""
        if self.seeds is not None:
            return seed_shapes.cost(lengths, seeds=self.seeds, heads=self.heads, dim=self.dim)
        if self.window is not None:
            return window_shapes.cost(lengths, window=self.window, heads=self.heads, dim=self.dim)
        return gdpa_shapes.cost(lengths, keys=self.keys, heads=self.heads, dim=self.dim)


@dataclasses.dataclass
class Problem:
    """A case with its operands on the device, bf16.

    Attributes:
      operands: q, k, v; packed rows, dense ``[batch, keys, heads, dim]``, or ``[seeds, heads, dim]``.
      packed: for q, k, v and the output: whether it is packed rows.
      cotangent: of the output.
      offsets: row splits and lengths, int32.
      host_splits: the row splits on the host.
    """

    case: Case
    operands: tuple[jax.Array, jax.Array, jax.Array]
    packed: tuple[bool, bool, bool, bool]
    cotangent: jax.Array
    offsets: tuple[jax.Array, jax.Array]
    host_splits: np.ndarray


def problem(case: Case) -> Problem:
    """Draws operands on the device, the same ones each time."""
    lengths = case.lengths()
    splits = np.concatenate([[0], np.cumsum(jagged.aligned(lengths))]).astype(np.int32)
    rows = (int(splits[-1]), case.heads, case.dim)
    dense = (case.batch, case.keys or 0, case.heads, case.dim)
    if case.seeds is not None:
        shapes, packed = [(case.seeds, *rows[1:]), rows, rows], (False, True, True, False)
        out = (case.batch, case.seeds, *rows[1:])
    elif case.keys is not None:
        shapes, packed, out = [rows, dense, dense], (True, False, False, True), rows
    else:
        shapes, packed, out = [rows] * 3, (True, True, True, True), rows
    keys = jax.random.split(jax.random.key(11), 4)
    q, k, v, cotangent = (_normal(key, shape) for key, shape in zip(keys, [*shapes, out], strict=True))
    return Problem(case, (q, k, v), packed, cotangent, (jnp.asarray(splits), jnp.asarray(lengths)), splits)


def _normal(key, shape):
    # Drawn in float32: bf16 has so few bits that its normal numbers end at 2.6 standard deviations.
    return jax.jit(lambda key: jax.random.normal(key, shape, jnp.float32).astype(jnp.bfloat16))(key)


def _gdpa(group, batch, lengths, sparsities, **fields):
    return [Case(group, batch, length, sparsity, **fields) for length in lengths for sparsity in sparsities]


LENGTHS, BOTH = (1024, 512, 2048, 256), (1.0, 0.5)


def _of_length(length: int) -> list[Case]:
    return [*_gdpa("pffn 256", 1152, (length,), BOTH, keys=256), *_gdpa("self", 1152, (length,), BOTH)]


CASES = (
    *_of_length(1024),
    Case("window", 1152, 1024, 0.5, window=(100, 100)),
    Case("seeds", 1152, 1000, 0.5, seeds=64),
    *_gdpa("block", 1152, (1024,), BOTH, keys=256, block=True),
    *(case for length in LENGTHS[1:] for case in _of_length(length)),
    Case("window", 1152, 1024, 0.5, window=(50, 50)),
    *(Case("seeds", 1152, 1000, 0.5, seeds=seeds) for seeds in (32, 256)),
    *(
        Case("narrow", 1152, 1024, 0.5, keys=256, dim=dim, activation=activation)
        for dim in (64, 32)
        for activation in ("gelu", "silu", "relu")
    ),
    *_gdpa("pffn 128", 1152, LENGTHS, BOTH, keys=128),
    *(
        Case("window", 4, length, 1.0, window=window, heads=16)
        for length in (4096, 8192, 32768)
        for window in ((128, 128), (1024, 0))
    ),
)
"""Those that matter most first: a run that is short of time gets at least these."""

TOYS = (
    *_gdpa("pffn 256", 6, (24, 40), (0.5,), keys=16, dim=32),
    *_gdpa("self", 6, (24,), (0.5,), dim=32),
    Case("block", 6, 24, 0.5, keys=16, dim=32, block=True),
    Case("narrow", 6, 24, 0.5, keys=16, dim=16, activation="silu"),
    Case("seeds", 6, 24, 0.5, seeds=4, dim=32),
    Case("window", 6, 24, 0.5, window=(5, 5), dim=32),
)
"""Shapes of the same kinds that a CPU takes milliseconds for; groups keep their names, so that pictures are alike."""
