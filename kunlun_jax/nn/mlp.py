"""The multi-layer perceptron, and FLOPs of linear maps."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from kunlun_jax.nn.init import Linear, scaled
from pallas_kernels.activations import ACTIVATIONS as POINTWISE
from pallas_kernels.dispatch import accumulator


def _gelu(x: jax.Array) -> jax.Array:
    """GELU by erf, computed in float32 or better; `jax.nn.gelu` takes erfc, at over twice the time on a CPU."""
    return POINTWISE["gelu"].value(x.astype(accumulator(x.dtype))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": _gelu,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The activation of that name; a ValueError lists the valid ones."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is unknown; use one of {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def linear_flops(layer: nnx.Linear) -> int:
    """Forward FLOPs of a linear layer per row: two per weight; the bias is not counted."""
    return 2 * layer.in_features * layer.out_features


class MLP(nnx.Module):
    """Linear layers with an activation between them and none after the last.

    Args:
      sizes: widths from input to output, at least two.
      activation: name in `ACTIVATIONS`.
      last_scale: initial scale of the last kernel, relative to LeCun's; small if another path is to lead at first.
      last_bias: initial value of its bias.
      dtype: of the computation; parameters are float32.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: str = "gelu",
        last_scale: float = 1.0,
        last_bias: float = 0.0,
        dtype,
        rngs: nnx.Rngs,
    ):
        pairs = list(itertools.pairwise(sizes))
        starts: list[dict[str, Any]] = [{} for _ in pairs]
        starts[-1] = {"kernel_init": scaled(last_scale), "bias_init": nnx.initializers.constant(last_bias)}
        self.layers = nnx.List(
            Linear(fan_in, fan_out, dtype=dtype, rngs=rngs, **start)
            for (fan_in, fan_out), start in zip(pairs, starts, strict=True)
        )
        self.activation = activation

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """The last layer's output, in `dtype`."""
        act = activation(self.activation)
        for layer in self.layers[:-1]:
            x = act(layer(x))
        return self.layers[-1](x)

    def flops(self) -> int:
        """Forward FLOPs per row."""
        return sum(linear_flops(layer) for layer in self.layers)
