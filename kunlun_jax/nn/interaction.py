"""GlobalInteraction: a mixture of Wukong experts over context and history tokens.

    expert:  X' = LN([FMB(X) | LCB(X)] + X)                                          Wukong (P)
             W_r X in place of X where the number of tokens changes (P), near the identity at the start (O)
             the outer LN of each token (P), or none (O)
             FM(X) = U (U^T Y),  U = X, or the tokens of X scaled to length 1 (O)
             FMB(X) = reshape(MLP(LN(flatten(FM(X))))),  LCB(X) = W_L X
             or reshape(MLP(<u_i, u_j> for i < j)): FM(X) = U U^T, as before Wukong's optimization (P), without what
             it has twice, the squares and the LN (O)
    mixture: M experts in parallel, each on its own interleaved part of the tokens, outputs side by side.

The parts are a fixed partition of features, not routed tokens (Kunlun, R); interleaved, so that every expert sees the
context and every event type (O).
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from kunlun_jax.nn.cross import dot_flops, dot_products, pairs_of, unit
from kunlun_jax.nn.init import Linear, near_identity, normal_of
from kunlun_jax.nn.mlp import MLP, linear_flops
from kunlun_jax.parallel import EXPERTS, devices_along
from pallas_kernels.dispatch import accumulator


class WukongExpert(nnx.Module):
    """One Wukong layer, ``tokens_in -> fm_tokens + linear_tokens`` tokens of width `dim`.

    Args:
      rank: k, columns of Y.
      products: what the deep net reads, "low_rank" the normalized FM(X), "pairs" the product of every two tokens as it
        is: in sums over all tokens and under a norm that of two ids may drown.
      hidden: widths of the hidden layers of the deep net after FM.
      unit_products: whether tokens are scaled to length 1 before FM multiplies them. All products share one LayerNorm,
        where the products of long tokens with themselves would drown a match between two short ones.
      token_norm: whether each token that leaves is normalized. Its length says how much is known: that of an id that
        was hardly trained is short, and at unit variance such an id is as loud as any other.

    Raises:
      ValueError: `products` is "pairs", and there is a single token.
    """

    def __init__(
        self,
        tokens_in: int,
        dim: int,
        *,
        fm_tokens: int,
        linear_tokens: int,
        rank: int,
        products: Literal["low_rank", "pairs"] = "low_rank",
        hidden: tuple[int, ...],
        activation: str,
        unit_products: bool = False,
        token_norm: bool = True,
        dtype,
        rngs: nnx.Rngs,
    ):
        # Norms compute in float32 even where the rest is bfloat16.
        norm_dtype = accumulator(jnp.dtype(dtype))
        low_rank = products == "low_rank"
        width = tokens_in * rank if low_rank else pairs_of(tokens_in)
        if not width:
            raise ValueError(
                "fm_products is 'pairs', and an expert has a single token; use fewer experts or 'low_rank'"
            )
        init = normal_of(tokens_in**-0.5)
        self.fm_map = nnx.Param(init(rngs.params(), (tokens_in, rank), jnp.float32)) if low_rank else None
        self.fm_norm = nnx.LayerNorm(width, epsilon=1e-5, dtype=norm_dtype, rngs=rngs) if low_rank else None
        self.deep = MLP((width, *hidden, fm_tokens * dim), activation=activation, dtype=dtype, rngs=rngs)
        self.linear = Linear(tokens_in, linear_tokens, use_bias=False, dtype=dtype, rngs=rngs)
        self.tokens_in, self.tokens_out = tokens_in, fm_tokens + linear_tokens
        start = near_identity(0.1)
        self.residual = (
            None
            if tokens_in == self.tokens_out
            else Linear(tokens_in, self.tokens_out, use_bias=False, kernel_init=start, dtype=dtype, rngs=rngs)
        )
        self.unit_products = unit_products
        self.norm = nnx.LayerNorm(dim, epsilon=1e-5, dtype=norm_dtype, rngs=rngs) if token_norm else None
        self.dim, self.fm_tokens, self.dtype = dim, fm_tokens, dtype

    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch out dim"]:
        """``fm_tokens`` tokens of products, then ``linear_tokens`` of linear maps."""
        products = self.products(x)
        deep = self.deep(products if self.fm_norm is None else self.fm_norm(products))
        by_channel = rearrange(x, "batch tokens dim -> batch dim tokens")
        out = jnp.concatenate(
            [
                rearrange(deep, "batch (tokens dim) -> batch tokens dim", tokens=self.fm_tokens),
                rearrange(self.linear(by_channel), "batch dim tokens -> batch tokens dim"),
            ],
            axis=1,
        )
        residual = (
            x if self.residual is None else rearrange(self.residual(by_channel), "batch dim out -> batch out dim")
        )
        out = out + residual
        return out if self.norm is None else self.norm(out).astype(self.dtype)

    def products(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch products"]:
        """FM(X), by token and then by column; or the dot products of its pairs of tokens."""
        u = unit(x) if self.unit_products else x
        if self.fm_map is None:
            return dot_products(u)
        # U (U^T Y) rather than (U U^T) Y: linear in the number of tokens.
        low_rank = jnp.einsum("bnd,nk->bdk", u, self.fm_map[...].astype(self.dtype))
        return rearrange(jnp.einsum("bnd,bdk->bnk", u, low_rank), "batch tokens rank -> batch (tokens rank)")

    def flops(self) -> int:
        """Forward FLOPs per example."""
        maps = sum(linear_flops(layer) for layer in (self.linear, self.residual) if layer is not None)
        products = dot_flops(self.tokens_in, self.dim) if self.fm_map is None else 4 * self.fm_map.size * self.dim
        return products + self.deep.flops() + self.dim * maps


class GlobalInteraction(nnx.Module):
    """M Wukong experts, expert ``m`` on tokens ``m, m + M, m + 2 M, ...``.

    Where devices share them (`kunlun_jax.training.partition`), those of a device stand first in its list. It gets their
    tokens from all devices of the axis, and its examples' outputs back.

    Args:
      tokens_in: tokens of [X_sum | H_1 | H_2 ...].
      experts: M; each adds ``fm_tokens + linear_tokens`` tokens.
    """

    def __init__(self, tokens_in: int, dim: int, *, experts: int, fm_tokens: int, linear_tokens: int, **expert):
        if not 1 <= experts <= tokens_in:
            raise ValueError(f"experts is {experts}; it must be between 1 and the {tokens_in} tokens they share")
        self.experts = nnx.List(
            WukongExpert(
                len(range(m, tokens_in, experts)), dim, fm_tokens=fm_tokens, linear_tokens=linear_tokens, **expert
            )
            for m in range(experts)
        )
        self.tokens_out = experts * (fm_tokens + linear_tokens)

    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch out dim"]:
        """The tokens of expert 0, then those of expert 1, ..."""
        tokens = _to_experts([x[:, m :: len(self.experts)] for m in range(len(self.experts))])
        parts = [expert(share) for expert, share in zip(self.experts, tokens, strict=False)]
        return jnp.concatenate(_from_experts(parts), axis=1)

    def flops(self) -> int:
        """Forward FLOPs per example."""
        return sum(expert.flops() for expert in self.experts)


def _to_experts(tokens: list[Float[Array, "batch _ dim"]]) -> list[Float[Array, "shared _ dim"]]:
    """The tokens of each expert -> those of this device's experts, for the examples of all devices that share them."""
    if devices_along(EXPERTS) == 1:
        return tokens
    return list(jax.lax.all_to_all(jnp.stack(tokens), EXPERTS, 0, 1, tiled=True))


def _from_experts(parts: list[Float[Array, "shared out dim"]]) -> list[Float[Array, "batch out dim"]]:
    """The way back: what this device's experts made -> what all experts made of its own examples."""
    if devices_along(EXPERTS) == 1:
        return parts
    return list(jax.lax.all_to_all(jnp.stack(parts), EXPERTS, 1, 0, tiled=True))


def check_shared(model: Any, devices: int) -> None:
    """That this many devices can share the experts of each `GlobalInteraction` of a model.

    Raises:
      ValueError: there are none, or they are not equally many on each device, or not alike; or a list with the name of
        theirs is another module's.
    """
    if devices == 1:
        return
    found = {".".join(map(str, path)): part for path, part in nnx.iter_modules(model) if hasattr(part, "experts")}
    if not found:
        raise ValueError(f"mesh.experts is {devices}, and this model has no GlobalInteraction; it must be 1")
    for name, part in found.items():
        if not isinstance(part, GlobalInteraction):
            raise ValueError(
                f"mesh.experts is {devices}, and {name}.experts belongs to a {type(part).__name__}, which does not "
                "share them; give it another name, or set mesh.experts to 1"
            )
        count = len(part.experts)
        if count % devices:
            raise ValueError(f"mesh.experts is {devices}; it must divide model.experts, which is {count}")
        tokens = sum(expert.tokens_in for expert in part.experts)
        if tokens % count:
            raise ValueError(
                f"mesh.experts is {devices}, and the {count} experts of {name} are unlike, for they share {tokens} "
                f"tokens; those must be a multiple of model.experts {count}. They follow from the context features "
                "(with model.interaction_context summary from model.summary_tokens) and the tokens of each event type. "
                "Or set mesh.experts to 1"
            )
