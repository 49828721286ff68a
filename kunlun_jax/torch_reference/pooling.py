"""Pooling a history into a fixed number of tokens.

PMA:  H = MHA(Q_learned, S, S)                                                    InterFormer (P)
HSP:  H_seed = MHA(Norm(E_seed), S, S),  more seeds than output tokens            Kunlun (R, sizes r)
H = sum_{i=1..k} Z_i^T H_seed W_i                                           SumKronLinear (R)
H = Z^T H_seed                                                              without it, as its ablation (O)
"""

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kunlun_jax.torch_reference.event_input import unit_rank
from kunlun_jax.torch_reference.operators import seed_attention


class SeedAttention(nn.Module):
    """MHA(seeds, S, S) with learned seeds that all examples share: PMA as it is, HSP with `norm_seeds`.

    With `counts` the second half of the heads is scaled by half the logarithm of one plus the number of events;
    with `ranks` a learned multiple of `unit_rank` is added to the keys.
    """

    def __init__(
        self, seeds: int, dim: int, *, heads: int, norm_seeds: bool, counts: bool = False, ranks: bool = False
    ):
        super().__init__()
        self.counts = counts
        self.rank_keys = nn.Parameter(torch.randn(dim)) if ranks else None
        self.seeds = nn.Parameter(torch.randn(seeds, dim))
        self.norm = nn.LayerNorm(dim, eps=1e-5) if norm_seeds else nn.Identity()
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.heads = heads

    def forward(
        self, events: Float[Tensor, "batch time dim"], mask: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "batch seeds dim"]:
        """H_seed; without events it is the bias of the last map."""
        q = rearrange(self.query(self.norm(self.seeds)), "seeds (heads dim) -> seeds heads dim", heads=self.heads)
        k, v = self.key_value(events).chunk(2, dim=-1)
        if self.rank_keys is not None:
            k = k + unit_rank(mask, k.dtype) * self.rank_keys
        k, v = (rearrange(x, "batch time (heads dim) -> batch time heads dim", heads=self.heads) for x in (k, v))
        o = seed_attention(q, k, v, mask)
        if self.counts:
            gain = 0.5 * torch.log1p(mask.sum(1, dtype=o.dtype))[:, None, None, None]
            o = torch.cat([o[:, :, : self.heads // 2], gain * o[:, :, self.heads // 2 :]], dim=2)
        return self.out(rearrange(o, "batch seeds heads dim -> batch seeds (heads dim)"))


class SumKronLinear(nn.Module):
    """Y = sum_i Z_i^T H W_i, with Z_i ``[seeds, tokens]`` and W_i ``[dim, dim]``, i = 1 .. rank."""

    def __init__(self, seeds: int, tokens: int, dim: int, rank: int):
        super().__init__()
        self.token_maps = nn.Parameter(torch.randn(rank, seeds, tokens) * (seeds * rank) ** -0.5)
        self.channel_maps = nn.Parameter(torch.randn(rank, dim, dim) * dim**-0.5)

    def forward(self, x: Float[Tensor, "batch seeds dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Y of each example."""
        mixed = einsum(self.token_maps, x, "rank seeds tokens, batch seeds dim -> rank batch tokens dim")
        return einsum(mixed, self.channel_maps, "rank batch tokens dim, rank dim out -> batch tokens out")


class TokenLinear(nn.Module):
    """Y = Z^T H, with Z ``[seeds, tokens]``."""

    def __init__(self, seeds: int, tokens: int):
        super().__init__()
        self.token_map = nn.Linear(seeds, tokens, bias=False)

    def forward(self, x: Float[Tensor, "batch seeds dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Y of each example."""
        return self.token_map(x.transpose(1, 2)).transpose(1, 2)


class HSP(nn.Module):
    """Hierarchical seed pooling: `seeds` queries attend to the events, SumKronLinear condenses them to `tokens`.

    Without a rank `TokenLinear` does.
    """

    def __init__(self, seeds: int, tokens: int, dim: int, *, heads: int, rank: int | None, **of_attention: bool):
        super().__init__()
        self.attention = SeedAttention(seeds, dim, heads=heads, norm_seeds=True, **of_attention)
        self.condense = TokenLinear(seeds, tokens) if rank is None else SumKronLinear(seeds, tokens, dim, rank)

    def forward(
        self, events: Float[Tensor, "batch time dim"], mask: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """H of each history."""
        return self.condense(self.attention(events, mask))
