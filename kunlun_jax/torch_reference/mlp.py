"""The multi-layer perceptron."""

import itertools
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from kunlun_jax.torch_reference.operators import ACTIVATIONS


class MLP(nn.Module):
    """Linear layers of these widths, with an activation between them and none after the last."""

    def __init__(self, sizes: Sequence[int], activation: str):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(sizes))
        self.activation = activation

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """The last layer's output."""
        *hidden, last = self.layers
        for layer in hidden:
            x = ACTIVATIONS[self.activation](layer(x))
        return last(x)
