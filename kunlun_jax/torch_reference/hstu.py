"""HSTU in PyTorch, for ranking: the events of all types in order of time, then the candidate.

    U, V, Q, K = split(SiLU(LN(X) W))
    A  = SiLU(Q K^T + rab_pos + rab_time) / n, causal
    X' = X + W_o Dropout(U * LN(A V)),   logits = MLP(X^L of the candidate [| context tokens])

Source: HSTU, arXiv 2402.17152 (P), time buckets of its published code (M); one candidate token, from all context
features and once more those that share a table with events, is ours (O).
"""

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kunlun_jax.data.dataset import Moments
from kunlun_jax.data.schema import Schema
from kunlun_jax.models.hstu import HSTUConfig
from kunlun_jax.torch_reference.batch import PaddedBatch
from kunlun_jax.torch_reference.mlp import MLP
from kunlun_jax.torch_reference.system import System


class HSTUBlock(nn.Module):
    """One layer; without `biased` it has neither biases nor the causal mask."""

    def __init__(self, config: HSTUConfig):
        super().__init__()
        dim = config.dim
        self.norm, self.out_norm = nn.LayerNorm(dim, eps=1e-5), nn.LayerNorm(dim, eps=1e-5)
        self.uvqk = nn.Linear(dim, 4 * dim)
        self.out = nn.Linear(dim, dim)
        self.position_bias = nn.Parameter(torch.zeros(config.positions)) if config.biased else None
        self.time_bias = nn.Parameter(torch.zeros(config.time_buckets)) if config.biased else None
        self.dropout = nn.Dropout(config.block_dropout)
        self.heads, self.n = config.heads, config.sequence_scale

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        age: Float[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"],
    ) -> Float[Tensor, "batch time dim"]:
        """X'; ages in seconds."""
        u, v, q, k = F.silu(self.uvqk(self.norm(x))).chunk(4, dim=-1)
        v, q, k = (rearrange(y, "batch time (heads dim) -> batch heads time dim", heads=self.heads) for y in (v, q, k))
        scores = einsum(q, k, "batch heads time dim, batch heads keys dim -> batch heads time keys")
        seen = mask[:, None, None, :]
        if self.position_bias is not None and self.time_bias is not None:
            distance = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])[None, :]
            gap = (age[:, None, :] - age[:, :, None]).clamp(min=1)
            bucket = (gap.log() / 0.301).floor().long().clamp(max=len(self.time_bias) - 1)
            position = self.position_bias[distance.clamp(0, len(self.position_bias) - 1)]
            scores = scores + (position + self.time_bias[bucket])[:, None]
            seen = seen & (distance >= 0)
        a = (F.silu(scores) / self.n).masked_fill(~seen, 0)
        av = rearrange(a @ v, "batch heads time dim -> batch time (heads dim)")
        return x + self.out(self.dropout(u * self.out_norm(av)))


class HSTU(System):
    """The model with its tables; arguments are those of `kunlun_jax.torch_reference.system.System`."""

    def __init__(self, schema: Schema, config: HSTUConfig, *, dense_moments: Moments | None = None):
        super().__init__(schema, config, event_dims=None, dense_moments=dense_moments)
        sizes = (self.context.tokens * config.dim, *config.candidate_hidden, config.dim)
        self.candidate = MLP(sizes, config.activation)
        shared = {column for name in self.names for column, _ in self.schema.matches(name)}
        dense_tokens = self.context.tokens - len(schema.categorical) - len(schema.multi_valued)
        self.tied = [dense_tokens + column for column in sorted(shared)] if config.tied_candidate else []
        self.layers = nn.ModuleList(HSTUBlock(config) for _ in range(config.layers))
        self.head_context = config.head_context
        self.make_head(config.dim * (1 + self.context.tokens * config.head_context), config)

    def forward(self, batch: PaddedBatch) -> Float[Tensor, "batch tasks"]:
        """Logits. Dropout acts under `train()`."""
        x, events = self.inputs(batch)
        candidate = self.candidate(x.flatten(1))
        for token in self.tied:
            candidate = candidate + x[:, token] * len(self.tied) ** -0.5
        of = [batch.events[name] for name in events]
        # One more position, for the candidate of the longest history.
        end = candidate[:, None]
        tokens = torch.cat([*events.values(), torch.zeros_like(end)], dim=1)
        age = torch.cat([*(e.age for e in of), end.new_zeros(end.shape[:2])], dim=1)
        mask = torch.cat([*(e.mask for e in of), torch.zeros(end.shape[:2], dtype=torch.bool)], dim=1)
        order = torch.where(mask, -age, torch.inf).argsort(dim=1, stable=True)
        lengths = mask.sum(1)
        time = torch.arange(tokens.shape[1])[None, :]
        is_candidate, mask = time == lengths[:, None], time <= lengths[:, None]
        tokens = tokens.take_along_dim(order[..., None], dim=1)
        sequence = torch.where(is_candidate[..., None], end, tokens)
        age = age.take_along_dim(order, dim=1).masked_fill(is_candidate, 0)
        for layer in self.layers:
            sequence = layer(sequence, age, mask)
        found = sequence[torch.arange(len(lengths)), lengths]
        return self.logits(torch.cat([found, x.flatten(1)], dim=1) if self.head_context else found, x)
