"""InterFormer's PFFN: one matrix per example, made from its context and applied to all of its events.

    PFFN(X_sum, S) = S f(X_sum),   f(X_sum) = W X_sum in R^{d x d},  W in R^{d x n_sum} along the token axis

Source: InterFormer (P). It runs as GDPA with the identity as activation and as keys, (S I) f, since a per-example
product over packed rows is what that kernel does; the product with I is the price. `flops` counts only the useful
product.
"""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from kunlun_jax.batch import Jagged
from kunlun_jax.nn.init import Linear, normal_of
from kunlun_jax.nn.mlp import linear_flops
from pallas_kernels import gdpa


class PersonalizedLinear(nnx.Module):
    """S f(X_sum) for events as wide as the context tokens.

    Args:
      tokens: n_sum, tokens of X_sum.
      dim: width of the tokens and of the events.
    """

    def __init__(self, tokens: int, dim: int, *, implementation: str | None, dtype, rngs: nnx.Rngs):
        # A column of f(X_sum) has about the norm of a token of X_sum over sqrt(dim), so S keeps its scale.
        init = normal_of((tokens * dim) ** -0.5)
        self.token_map = Linear(tokens, dim, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs)
        self.dim, self.implementation = dim, implementation

    def __call__(self, events: Jagged, x_sum: Float[Array, "batch tokens dim"]) -> Float[Array, "rows dim"]:
        """The events, mapped by the matrix of their example; zeros in rows that hold none."""
        f = self.token_map(rearrange(x_sum, "batch tokens dim -> batch dim tokens"))
        f = rearrange(f, "batch dim width -> batch width 1 dim")
        out = gdpa(
            events.values[:, None, :],
            jnp.broadcast_to(jnp.eye(self.dim, dtype=f.dtype)[None, :, None, :], f.shape),
            f,
            events.row_splits,
            events.lengths,
            activation="identity",
            implementation=self.implementation,
        )
        return out[:, 0, :]

    def flops(self, lengths: Int[np.ndarray, " batch"]) -> int:
        """Forward FLOPs of a batch with these history lengths, without the product with the identity."""
        return len(lengths) * self.dim * linear_flops(self.token_map) + 2 * int(lengths.sum()) * self.dim**2
