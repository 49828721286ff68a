"""Interactions of feature vectors: dot products of tokens, and the cross network.

dot:    <x_i, x_j> for i < j                                     DLRM, arXiv 1906.00091 (P)
        of tokens scaled to length 1, as an option               (O)
cross:  x' = x_0 * (W x + b) + x,   W full, or U V of low rank   DCNv2, arXiv 2008.13535 (P)
DHEN:   dot and cross side by side                               InterFormer (P)
"""

import jax
import numpy as np
from einops import rearrange
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Float

from kunlun_jax.nn.init import Linear
from kunlun_jax.nn.mlp import MLP, linear_flops
from pallas_kernels.dispatch import accumulator


def unit(x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
    """Tokens scaled to length 1, computed in float32 or better; a token of zeros stays zero."""
    y = x.astype(accumulator(x.dtype))
    return (y * jax.lax.rsqrt(jnp.square(y).sum(-1, keepdims=True) + 1e-6)).astype(x.dtype)


def dot_products(x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch pairs"]:
    """<x_i, x_j> of every pair of tokens i < j, by i and then by j."""
    first, second = np.triu_indices(x.shape[1], k=1)
    return jnp.einsum("bnd,bmd->bnm", x, x)[:, first, second]


def pairs_of(tokens: int) -> int:
    """Number of pairs of tokens."""
    return tokens * (tokens - 1) // 2


def dot_flops(tokens: int, dim: int) -> int:
    """Forward FLOPs of `dot_products` per example: all ``tokens x tokens`` products, as it computes."""
    return 2 * tokens * tokens * dim


class CrossNetwork(nnx.Module):
    """Cross layers: layer i holds interactions of order 1 .. i + 1 of the channels.

    Args:
      dim: channels of x_0.
      layers: how many.
      rank: of the maps, as U V with U ``[dim, rank]``; 0 for full matrices.
    """

    def __init__(self, dim: int, *, layers: int, rank: int, dtype, rngs: nnx.Rngs):
        rest = {"dtype": dtype, "rngs": rngs}
        self.down = nnx.List(Linear(dim, rank, use_bias=False, **rest) for _ in range(layers if rank else 0))
        self.maps = nnx.List(Linear(rank or dim, dim, **rest) for _ in range(layers))

    def __call__(self, x0: Float[Array, "batch dim"]) -> Float[Array, "batch dim"]:
        """The output of the last layer."""
        x = x0
        for index, layer in enumerate(self.maps):
            x = x0 * layer(self.down[index](x) if self.down else x) + x
        return x

    def flops(self) -> int:
        """Forward FLOPs per example."""
        return sum(linear_flops(layer) for layer in (*self.down, *self.maps))


class TokenInteraction(nnx.Module):
    """InterFormer's interaction arch: X' = MLP(Interaction(tokens)), `tokens_out` tokens of the same width.

    Args:
      kind: "dot", "dcn", or "dhen", which is both.
      layers, rank: of the cross network.
      hidden: widths of the hidden layers of the MLP.
      unit_products: whether dot products are of tokens scaled to length 1, so that a match between two short ones is
        not drowned by products of long ones.

    Raises:
      ValueError: an unknown kind.
    """

    def __init__(
        self,
        tokens_in: int,
        tokens_out: int,
        dim: int,
        *,
        kind: str,
        layers: int,
        rank: int,
        hidden: tuple[int, ...],
        activation: str,
        unit_products: bool = False,
        dtype,
        rngs: nnx.Rngs,
    ):
        if kind not in ("dot", "dcn", "dhen"):
            raise ValueError(f"interaction is {kind!r}; use 'dot', 'dcn' or 'dhen'")
        self.dot, self.tokens_in, self.tokens_out, self.dim = kind in ("dot", "dhen"), tokens_in, tokens_out, dim
        self.unit_products = unit_products
        channels = tokens_in * dim
        cross = kind in ("dcn", "dhen")
        self.cross = CrossNetwork(channels, layers=layers, rank=rank, dtype=dtype, rngs=rngs) if cross else None
        inputs = (pairs_of(tokens_in) if self.dot else 0) + (channels if cross else 0)
        self.mlp = MLP((inputs, *hidden, tokens_out * dim), activation=activation, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch out dim"]:
        """X'."""
        found = [dot_products(unit(x) if self.unit_products else x)] if self.dot else []
        if self.cross is not None:
            found.append(self.cross(rearrange(x, "batch tokens dim -> batch (tokens dim)")))
        out = self.mlp(jnp.concatenate(found, axis=1))
        return rearrange(out, "batch (tokens dim) -> batch tokens dim", tokens=self.tokens_out)

    def flops(self) -> int:
        """Forward FLOPs per example."""
        cross = self.cross.flops() if self.cross is not None else 0
        return self.mlp.flops() + cross + (dot_flops(self.tokens_in, self.dim) if self.dot else 0)
