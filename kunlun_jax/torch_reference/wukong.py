"""Wukong in PyTorch.

    X^0     = [context tokens | H_1 | H_2 ...],    H_e = PMA_e(S_e), or the mean of S_e
    X^{i+1} = LN([FMB(X^i) | LCB(X^i)] + X^i)      the residual linearly compressed where the token counts differ
    logits  = MLP(flatten(X^L))

Source: Wukong, arXiv 2403.02545 (P); how a history enters is ours (O).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kunlun_jax.data.dataset import Moments
from kunlun_jax.data.schema import Schema
from kunlun_jax.models.wukong import WukongConfig
from kunlun_jax.torch_reference.batch import PaddedBatch
from kunlun_jax.torch_reference.interaction import WukongExpert
from kunlun_jax.torch_reference.pooling import SeedAttention
from kunlun_jax.torch_reference.system import EVENT, System


class MeanPooling(nn.Module):
    """The mean of a history's events as one token, zeros where there are none."""

    def forward(
        self, events: Float[Tensor, "batch time dim"], mask: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "batch 1 dim"]:
        """H of each history."""
        total = events.masked_fill(~mask[..., None], 0).sum(1, keepdim=True)
        return total / mask.sum(1).clamp(min=1)[:, None, None]


class Wukong(System):
    """The model with its tables; arguments are those of `kunlun_jax.torch_reference.system.System`."""

    def __init__(self, schema: Schema, config: WukongConfig, *, dense_moments: Moments | None = None):
        super().__init__(schema, config, event_dims=None, dense_moments=dense_moments)
        pma = config.history_pooling == "pma"
        self.pool = nn.ModuleDict()
        for name in self.names:
            self.pool[EVENT + name] = (
                SeedAttention(config.history_tokens, config.dim, heads=config.history_heads, norm_seeds=False)
                if pma
                else MeanPooling()
            )
        tokens = self.context.tokens + len(self.names) * (config.history_tokens if pma else 1)
        self.layers = nn.ModuleList()
        for _ in range(config.layers):
            layer = WukongExpert(
                tokens,
                config.dim,
                fm_tokens=config.fm_tokens,
                linear_tokens=config.linear_tokens,
                rank=config.fm_rank,
                hidden=config.fm_hidden,
                activation=config.activation,
                unit_products=config.unit_products,
                token_norm=config.token_norm,
            )
            tokens = config.fm_tokens + config.linear_tokens
            self.layers.append(layer)
        self.make_head(tokens * config.dim, config)

    def forward(self, batch: PaddedBatch) -> Float[Tensor, "batch tasks"]:
        """Logits. Dropout acts under `train()`."""
        context, events = self.inputs(batch)
        histories = [self.pool[EVENT + name](s, batch.events[name].mask) for name, s in events.items()]
        x = torch.cat([context, *histories], dim=1)
        for layer in self.layers:
            x = layer(x)
        return self.logits(x, context)
