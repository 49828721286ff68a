"""InterFormer's self-gate.

    Gate(Z) = sigma(Z * MLP(Z)),   sigma in {sigmoid, tanh, identity}

Source: InterFormer (P); the MLP is one linear map whose bias starts at one, so that a new gate is sigma(Z) except for
its random weights (O).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kunlun_jax.nn.mlp import MLP

GATES = {"sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh, "identity": lambda x: x}


class Gate(nnx.Module):
    """The gate over tokens of width `dim`.

    Args:
      kind: name in `GATES`; a ValueError lists the valid ones.
    """

    def __init__(self, dim: int, *, kind: str, dtype, rngs: nnx.Rngs):
        if kind not in GATES:
            raise ValueError(f"gate {kind!r} is unknown; use one of {sorted(GATES)}")
        self.mlp = MLP((dim, dim), dtype=dtype, rngs=rngs)
        self.mlp.layers[-1].bias = nnx.Param(jnp.ones(dim, jnp.float32))
        self.kind = kind

    def __call__(self, z: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        """The gated tokens."""
        return GATES[self.kind](z * self.mlp(z))

    def flops(self) -> int:
        """Forward FLOPs per token."""
        return self.mlp.flops()
