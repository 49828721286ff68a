"""GlobalInteraction: a mixture of Wukong experts over context and history tokens.

expert:  X' = LN([FMB(X) | LCB(X)] + X),  W_r X where the token counts differ    Wukong (P); the LN or none (O)
FM(X) = (U U^T) Y,  U = X or its tokens at length 1 (O),  FMB(X) = reshape(MLP(LN(flatten(FM(X))))),  LCB(X) = W_L X
or FMB(X) = reshape(MLP(the entries of U U^T above its diagonal)) (P: U U^T under an LN; O)
mixture: M experts in parallel, expert m on tokens m, m + M, m + 2M ..., outputs side by side   Kunlun (R; parts O)
"""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from kunlun_jax.torch_reference.mlp import MLP


def unit(x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
    """Tokens scaled to length 1."""
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def dot_products(x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch pairs"]:
    """<x_i, x_j> of every pair of tokens i < j, by i and then by j."""
    first, second = torch.triu_indices(x.shape[1], x.shape[1], offset=1)
    return (x @ x.transpose(1, 2))[:, first, second]


class WukongExpert(nn.Module):
    """One Wukong layer, ``tokens_in -> fm_tokens + linear_tokens`` tokens; `rank` columns of Y, `hidden` of the MLP."""

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
    ):
        super().__init__()
        low_rank = products == "low_rank"
        self.fm_map = nn.Parameter(torch.randn(tokens_in, rank) * tokens_in**-0.5) if low_rank else None
        self.fm_norm = nn.LayerNorm(tokens_in * rank, eps=1e-5) if low_rank else None
        width = tokens_in * rank if low_rank else tokens_in * (tokens_in - 1) // 2
        self.deep = MLP((width, *hidden, fm_tokens * dim), activation)
        self.linear = nn.Linear(tokens_in, linear_tokens, bias=False)
        tokens_out = fm_tokens + linear_tokens
        self.residual = None if tokens_in == tokens_out else nn.Linear(tokens_in, tokens_out, bias=False)
        self.unit_products = unit_products
        self.norm = nn.LayerNorm(dim, eps=1e-5) if token_norm else None
        self.fm_tokens = fm_tokens

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch out dim"]:
        """`fm_tokens` tokens of products, then `linear_tokens` of linear maps."""
        u = unit(x) if self.unit_products else x
        if self.fm_map is None or self.fm_norm is None:
            deep = self.deep(dot_products(u))
        else:
            products = u @ u.transpose(1, 2) @ self.fm_map
            deep = self.deep(self.fm_norm(rearrange(products, "batch tokens rank -> batch (tokens rank)")))
        fmb = rearrange(deep, "batch (tokens dim) -> batch tokens dim", tokens=self.fm_tokens)
        lcb = self.linear(x.transpose(1, 2)).transpose(1, 2)
        residual = x if self.residual is None else self.residual(x.transpose(1, 2)).transpose(1, 2)
        out = torch.cat([fmb, lcb], dim=1) + residual
        return out if self.norm is None else self.norm(out)


class GlobalInteraction(nn.Module):
    """`experts` Wukong experts over `tokens_in` tokens of width `dim`; `expert` are their sizes."""

    def __init__(self, tokens_in: int, dim: int, *, experts: int, **expert):
        super().__init__()
        self.experts = nn.ModuleList(
            WukongExpert(len(range(m, tokens_in, experts)), dim, **expert) for m in range(experts)
        )

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch out dim"]:
        """The tokens of expert 0, then those of expert 1, ..."""
        return torch.cat([expert(x[:, m :: len(self.experts)]) for m, expert in enumerate(self.experts)], dim=1)
