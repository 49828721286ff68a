"""Two implementations on the same weights and inputs in float64: outputs and gradients, a table, an exit code.

Weights travel as arrays under the names of our own PyTorch twins (`kunlun_jax.torch_reference.weights`), which refuses
an array that is missing, extra or misshaped. A gradient travels by the same names.
"""

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from flax import nnx
from jaxtyping import Array, Float
from torch import Tensor

from kunlun_jax.torch_reference import weights
from kunlun_jax.torch_reference.parity import GRADIENT_FLOOR, cast, precision, relative_difference

BOUND = 1e-10
"""Largest relative difference, of outputs and of gradients alike, in float64."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What one implementation gives.

    Attributes:
      output: ``[...]`` float64.
      d_input: gradient of the sum of output times cotangent by the input.
      d_weights: name of a weight -> its gradient.
    """

    output: np.ndarray
    d_input: np.ndarray
    d_weights: Mapping[str, np.ndarray]


class Stack(nnx.Module):
    """Layers under the name that the table of weights knows them by."""

    def __init__(self, layers: Sequence[nnx.Module]):
        self.layers = nnx.List(layers)


def result_of_ours(
    stack: Stack,
    carried: weights.Arrays,
    run: Callable[[Stack, Array], Array],
    x: Float[np.ndarray, "..."],
    cotangent: Float[np.ndarray, "..."],
) -> Result:
    """Ours, with the weights `carried` over.

    Raises:
      ValueError: they are not the weights of `stack`.
    """
    graph, params, rest = nnx.split(stack, nnx.Param, ...)
    params, _ = weights.into_nnx(carried, cast(params, np.float64), {}, source="what was carried over")

    def loss(params: Any, x: Array) -> tuple[Array, Array]:
        output = run(nnx.merge(graph, params, rest), x)
        return (output * jnp.asarray(cotangent)).sum(), output

    (d_params, d_input), output = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, jnp.asarray(x))
    return Result(np.asarray(output), np.asarray(d_input), weights.from_nnx(d_params, {}))


def result_of_theirs(
    module: torch.nn.Module,
    carry: Callable[[Mapping[str, Tensor]], dict[str, np.ndarray]],
    run: Callable[[Tensor], Tensor],
    x: Float[np.ndarray, "..."],
    cotangent: Float[np.ndarray, "..."],
) -> Result:
    """Theirs; `carry` makes arrays under our names of tensors under the names of the parameters of `module`."""
    module.zero_grad()
    input_ = torch.tensor(x, requires_grad=True)
    output = run(input_)
    (output * torch.tensor(cotangent)).sum().backward()
    assert input_.grad is not None
    # A bias that a case leaves out of its sum has no gradient.
    d_weights = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in module.named_parameters()}
    return Result(output.detach().numpy(), input_.grad.numpy(), carry(d_weights))


def randomize(module: torch.nn.Module, rng: np.random.Generator, scale: float) -> None:
    """Adds normal numbers to all parameters, for norms and biases start as ones and zeros, which hide a mix-up."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += torch.tensor(rng.normal(0, scale, tuple(parameter.shape)), dtype=parameter.dtype)


def differences(theirs: Result, ours: Result) -> dict[str, float]:
    """What -> the largest relative difference over layers: output, gradients of the input and of each weight of theirs.

    Weights that ours alone has are left out; a gradient is divided by no less than `GRADIENT_FLOOR` of the largest.
    """
    scale = max(float(np.abs(x).max(initial=0)) for x in (theirs.d_input, *theirs.d_weights.values()))
    rows = {"output": relative_difference(ours.output, theirs.output)}
    rows["gradient of the input"] = relative_difference(ours.d_input, theirs.d_input)
    for name, gradient in theirs.d_weights.items():
        row = f"gradient of {re.sub(r'^layers[.][0-9]+[.]', '', name)}"
        difference = relative_difference(ours.d_weights[name], gradient, GRADIENT_FLOOR * scale)
        rows[row] = max(rows.get(row, 0.0), difference)
    return rows


def table(cases: Mapping[str, Mapping[str, float]]) -> str:
    """A row for each thing compared, a column for each case."""
    rows = list(dict.fromkeys(row for case in cases.values() for row in case))
    lines = [f"{'largest relative difference':<34}" + "".join(f"{name:>11}" for name in cases)]
    for row in rows:
        cells = [f"{case[row]:.1e}" if row in case else "-" for case in cases.values()]
        lines.append(f"{row:<34}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of a comparison."""

    checkout: Path
    """Folder of a checkout of the public repository."""
    seed: int = 0
    """Of weights and inputs."""


def command(
    arguments: list[str] | None,
    module: str,
    description: str | None,
    compare: Callable[[Path, np.random.Generator], dict[str, dict[str, float]]],
    notes: str,
) -> int:
    """Parses flags, compares, prints; the exit code is 1 above `BOUND` and 2 for a folder that is no such checkout."""
    args = tyro.cli(Arguments, args=arguments, prog=f"experiments.cross_check.{module}", description=description)
    torch.manual_seed(args.seed)  # of what their constructors draw
    try:
        with precision("float64"):
            cases = compare(args.checkout, np.random.default_rng(args.seed))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(cases))
    print(notes)
    wrong = [f"{case}, {row}: {x:.1e}" for case, rows in cases.items() for row, x in rows.items() if not x <= BOUND]
    for line in wrong:
        print(f"error: differs by more than {BOUND}: {line}", file=sys.stderr)
    return 1 if wrong else 0
