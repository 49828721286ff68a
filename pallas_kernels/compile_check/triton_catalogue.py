"""The Triton kernels in the block sizes in use, as cases that the check compiles without a GPU."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.activations import ACTIVATIONS
from pallas_kernels.chips import A100, H100, L4, Chip
from pallas_kernels.mosaic import schedule
from pallas_kernels.triton import blocks, launch, target

BATCH, HEADS, ROWS, SEEDS = 64, 4, 64 * 512, 256
"""Sizes of every case; kernels are specialized only to the heads."""

CHIPS = {(name := f"triton-{chip.generation}"): dataclasses.replace(chip, name=name) for chip in (A100, L4, H100)}
"""By the names of their result files, which differ from those of the Mosaic kernels for the same chip."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One kernel to compile.

    Attributes:
      operator: "gdpa", "window_attention" or "seed_attention".
      direction: "forward", "dq" or "dkv".
      capability: ten times the compute capability of the chip.
      dim: width of a head.
      dtype: name of the operands' dtype.
      activation: "softmax", or for gdpa a name of `pallas_kernels.activations`.
      sizes: block sizes in place of the built-in ones.
    """

    operator: str
    direction: str
    capability: int
    dim: int
    dtype: str
    activation: str
    sizes: blocks.Block | None = None

    @property
    def scores(self) -> float:
        """How many a thread computes in a step: a program's threads share a tile."""
        sizes = self._block
        return sizes.rows * sizes.tile / (32 * sizes.warps)

    @property
    def _block(self) -> blocks.Block:
        return self.sizes or blocks.block(self.direction, self.dim)

    @property
    def name(self) -> str:
        """A unique name, including block sizes."""
        sizes = self._block
        return (
            f"{self.operator}-sm{self.capability}-{self.direction}-d{self.dim}-{self.dtype}-{self.activation}-"
            f"rows{sizes.rows}-tile{sizes.tile}-warps{sizes.warps}-stages{sizes.stages}"
        )

    def build(self) -> tuple[Callable, tuple]:
        """The function to jit, and a ShapeDtypeStruct for each of its arguments."""
        softmax = self.activation == "softmax"
        problem = launch.Problem(
            target.Target(self.capability, sizes=self.sizes),
            self.activation,
            self.dim**-0.5,
            window=(100, 100) if self.operator == "window_attention" else None,
            shared=self.operator == "seed_attention",
        )

        def run(row_splits, lengths, q, k, v, grad, log_sum):
            keys = queries = schedule.packed(row_splits, lengths, ROWS)
            if problem.shared:
                queries = schedule.dense(BATCH, SEEDS)
            sides = {"queries": queries, "keys": keys, "balance": not problem.window}
            if self.direction == "forward":
                return launch.forward(problem, q, k, v, **sides)
            operands = (problem, q, k, v, grad, (log_sum, log_sum) if softmax else (None, None))
            if self.direction == "dq":
                dtype = jnp.dtype(jnp.float32) if problem.shared else q.dtype
                return launch.grad_queries(*operands, **sides, dtype=dtype)
            return launch.grad_keys(*operands, **sides)

        dtype = jnp.dtype(self.dtype)
        outputs = BATCH * SEEDS if problem.shared else ROWS
        q = (SEEDS if problem.shared else ROWS, HEADS, self.dim)
        shapes = [q, *2 * [(ROWS, HEADS, self.dim)], (outputs, HEADS, self.dim)]
        offsets = [jax.ShapeDtypeStruct((n,), jnp.int32) for n in (BATCH + 1, BATCH)]
        log_sum = jax.ShapeDtypeStruct((outputs, HEADS), jnp.float32)
        return run, (*offsets, *(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes), log_sum)


def cases(chip: Chip) -> tuple[Case, ...]:
    """Every operator and pass: for 8.0 each head width, at the widest also float16 and every activation; for the
    others the two widest, which need the most registers and shared memory.
    """
    all_of_them = chip.capability == target.LEAST_CAPABILITY
    found = []
    for operator, activation in (
        ("gdpa", "gelu"),
        ("window_attention", "softmax"),
        ("seed_attention", "softmax"),
    ):
        for dim in target.DIMS if all_of_them else target.DIMS[-2:]:
            for dtype in ("bfloat16", "float16") if all_of_them and dim == target.DIMS[-1] else ("bfloat16",):
                found += [Case(operator, name, chip.capability, dim, dtype, activation) for name in blocks.PASSES]
    if all_of_them:
        others = [name for name in ACTIVATIONS if name != "gelu"]
        found += [
            Case("gdpa", name, chip.capability, target.DIMS[-1], "bfloat16", activation)
            for activation in others
            for name in blocks.PASSES
        ]
    return tuple(found)
