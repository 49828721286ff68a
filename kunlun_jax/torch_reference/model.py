"""Kunlun in PyTorch, as the paper's figure has it.

    X_sum     = WeightGeneration(X^l)
    S'_e      = PersonalizedFFN_e(S_e^l, X_sum)                            for each event type e
    H_e       = HSP_e(S'_e)  or the cached H_e
    X^{l+1}   = GlobalInteraction([X^l | H_1 | H_2 ...])
    S_e^{l+1} = WindowAttention_e(S'_e)
    logits    = MLP(flatten(X^1 .. X^L))

Source: Kunlun, Figure 1 (P); the parts carry their marks in their files and in `KunlunConfig`.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kunlun_jax.data.dataset import Moments
from kunlun_jax.data.schema import Schema
from kunlun_jax.models.config import EventConfig, KunlunConfig, layer_plan
from kunlun_jax.torch_reference.attention import WindowAttention
from kunlun_jax.torch_reference.batch import PaddedBatch
from kunlun_jax.torch_reference.context import WeightGeneration
from kunlun_jax.torch_reference.ffn import PersonalizedFFN, PlainFFN
from kunlun_jax.torch_reference.interaction import GlobalInteraction
from kunlun_jax.torch_reference.pooling import HSP, SeedAttention
from kunlun_jax.torch_reference.system import EVENT, System


class KunlunLayer(nn.Module):
    """One layer; `plan` says what it runs on each event type, `tokens_in` is n."""

    def __init__(self, plan: Mapping[str, frozenset[str]], tokens_in: int, config: KunlunConfig):
        super().__init__()
        self.order, self.interaction_context = config.order, config.interaction_context
        personalized = config.ffn_kind == "personalized" and any("ffn" in parts for parts in plan.values())
        reads_summary = config.interaction_context == "summary" or personalized
        self.weight_generation = (
            WeightGeneration(
                tokens_in,
                config.summary_tokens,
                config.dim,
                gate=config.summary_gate,
                residual=config.summary_residual,
                activation=config.activation,
            )
            if reads_summary
            else None
        )
        self.pool, self.to_context, self.ffn, self.attention = (nn.ModuleDict() for _ in range(4))
        for name, parts in plan.items():
            event = config.for_event(name)
            if "pool" in parts:
                self.pool[EVENT + name] = make_pooling(config, event)
                self.to_context[EVENT + name] = nn.Linear(event.dim, config.dim)
            if "ffn" in parts and config.ffn_kind == "plain":
                self.ffn[EVENT + name] = PlainFFN(
                    event.dim,
                    width=event.ffn_width,
                    activation=config.ffn_activation,
                    layer_scale=config.ffn_layer_scale > 0,
                )
            elif "ffn" in parts:
                self.ffn[EVENT + name] = PersonalizedFFN(
                    config.summary_tokens,
                    config.dim,
                    event.dim,
                    heads=event.heads,
                    width=event.ffn_width,
                    activation=config.ffn_activation,
                    pre_scale=1 / config.ffn_tau if config.ffn_scale == "pre" else 1.0,
                    post_scale=1 / config.ffn_tau if config.ffn_scale == "post" else 1.0,
                    free_values=config.ffn_free_values > 0,
                    layer_scale=config.ffn_layer_scale > 0,
                )
            if "attention" in parts:
                self.attention[EVENT + name] = WindowAttention(
                    event.dim, heads=event.heads, window=event.window, rote=config.rote
                )
        context = tokens_in if config.interaction_context == "context" else config.summary_tokens
        self.interaction = GlobalInteraction(
            context + sum(config.for_event(name).tokens for name in plan),
            config.dim,
            experts=config.experts,
            fm_tokens=config.fm_tokens,
            linear_tokens=config.linear_tokens,
            rank=config.fm_rank,
            products=config.fm_products,
            hidden=config.fm_hidden,
            activation=config.activation,
            unit_products=config.unit_products,
            token_norm=config.token_norm,
        )

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        events: dict[str, Float[Tensor, "batch _ _"]],
        history: dict[str, Float[Tensor, "batch _ dim"]],
        age: Mapping[str, Float[Tensor, "batch _"]],
        mask: Mapping[str, Bool[Tensor, "batch _"]],
    ) -> tuple[
        Float[Tensor, "batch out dim"], dict[str, Float[Tensor, "batch _ _"]], dict[str, Float[Tensor, "batch _ dim"]]
    ]:
        """X', and S' and H by event type."""
        x_sum = None if self.weight_generation is None else self.weight_generation(x)
        history, after = dict(history), dict(events)
        for name in events:
            key = EVENT + name
            if key in self.ffn:
                after[name] = self.ffn[key](events[name], x_sum, mask[name])
            pooled = after if self.order == "ffn_first" else events
            if key in self.pool:
                history[name] = self.to_context[key](self.pool[key](pooled[name], mask[name]))
            if key in self.attention:
                after[name] = self.attention[key](after[name], age[name], mask[name])
        context = x if x_sum is None or self.interaction_context == "context" else x_sum
        x = self.interaction(torch.cat([context, *(history[name] for name in events)], dim=1))
        return x, after, history


def make_pooling(config: KunlunConfig, event: EventConfig) -> HSP | SeedAttention:
    """HSP, with or without SumKronLinear, or PMA as its ablation: only learned queries, one per output token."""
    rest = {"counts": config.pool_counts, "ranks": config.pool_ranks}
    if config.pooling != "pma":
        rank = event.kron_rank if config.pooling == "hsp" else None
        return HSP(event.seeds, event.tokens, event.dim, heads=event.heads, rank=rank, **rest)
    return SeedAttention(event.tokens, event.dim, heads=event.heads, norm_seeds=False, **rest)


class Kunlun(System):
    """The model with its tables; arguments are those of `System`."""

    def __init__(self, schema: Schema, config: KunlunConfig, *, dense_moments: Moments | None = None):
        widths = {event.name: config.for_event(event.name).dim for event in schema.events}
        super().__init__(schema, config, event_dims=widths, dense_moments=dense_moments)
        plans = {name: layer_plan(config, config.for_event(name)) for name in self.names}
        tokens = self.context.tokens
        self.layers = nn.ModuleList()
        for index in range(config.layers):
            self.layers.append(KunlunLayer({name: plan[index] for name, plan in plans.items()}, tokens, config))
            tokens = config.experts * (config.fm_tokens + config.linear_tokens)
        self.head_layers = config.layers if config.head_reads == "all" else 1
        self.make_head(self.head_layers * tokens * config.dim, config)

    def forward(self, batch: PaddedBatch) -> Float[Tensor, "batch tasks"]:
        """Logits. Dropout acts under `train()`."""
        context, events = self.inputs(batch)
        age, mask = ({name: getattr(batch.events[name], of) for name in self.names} for of in ("age", "mask"))
        history: dict[str, Tensor] = {}
        x, outputs = context, []
        for layer in self.layers:
            x, events, history = layer(x, events, history, age, mask)
            outputs.append(x)
        return self.logits(torch.cat(outputs[-self.head_layers :], dim=1), context)
