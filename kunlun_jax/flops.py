"""Parameters and FLOPs of a model by part, counted from shapes.

XLA's own count takes a scan body once and custom calls not at all, so each layer counts its own matrix products: two
FLOPs per multiply and add, elementwise work not counted. A test holds the count against XLA on a model without loops.
"""

import dataclasses
from collections.abc import Sequence

import jax
from flax import nnx

TRAINING_FACTOR = 3
"""FLOPs of a training step over those of a forward pass: the backward pass makes two products for each one."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A block of a model.

    Attributes:
      name: for people.
      parameters: numbers it learns.
      flops: forward FLOPs per example.
    """

    name: str
    parameters: int
    flops: int | float


def part(name: str, module: nnx.Module, flops: int | float) -> Part:
    """A part that is a module: its parameters are those of its state."""
    return Part(name, sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param))), flops)


def total_flops(parts: Sequence[Part]) -> float:
    """Forward FLOPs per example."""
    return float(sum(part.flops for part in parts))


def total_parameters(parts: Sequence[Part]) -> int:
    """Parameters, tables included."""
    return sum(part.parameters for part in parts)


def summary(parts: Sequence[Part]) -> str:
    """The parts as a table for a terminal: name, parameters, forward FLOPs per example and their share."""
    flops = total_flops(parts)
    rows = [(part.name, part.parameters, part.flops) for part in parts]
    rows.append(("total, forward", total_parameters(parts), flops))
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{'part':<{width}}  {'parameters':>13}  {'FLOPs/example':>13}  share"]
    for name, parameters, count in rows:
        lines.append(f"{name:<{width}}  {parameters:>13,}  {count:>13,.0f}  {count / max(flops, 1):>5.1%}")
    return "\n".join(lines)
