"""Kunlun in PyTorch, as the paper's figure has it.

    X_sum   = WeightGeneration(X)
    H_e     = HSP_e(S_e)  or the cached H_e                                for each event type e
    X'      = GlobalInteraction([X_sum | H_1 | H_2 ...])
    S_e'    = PersonalizedFFN_e(S_e, X_sum)  and / or  WindowAttention_e(S_e)
    logits  = MLP(flatten(X^L))

Source: Kunlun (r for the order of blocks; marks of the parts in their files and in `KunlunConfig`).
"""

import dataclasses
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kunlun_jax.data.dataset import Moments
from kunlun_jax.data.schema import Schema
from kunlun_jax.models.config import EventConfig, KunlunConfig, layer_plan
from kunlun_jax.torch_reference.attention import WindowAttention
from kunlun_jax.torch_reference.batch import Events, PaddedBatch
from kunlun_jax.torch_reference.context import ContextTokens, WeightGeneration
from kunlun_jax.torch_reference.event_input import EventInput
from kunlun_jax.torch_reference.ffn import PersonalizedFFN
from kunlun_jax.torch_reference.interaction import GlobalInteraction
from kunlun_jax.torch_reference.mlp import MLP
from kunlun_jax.torch_reference.pooling import HSP, SeedAttention

EVENT = "event_"
"""Stands before the name of an event type in the name of its module: "type" alone is a method of every module."""
TABLE = "table_"
"""Stands before the name of a table in the name of its parameter."""


class KunlunLayer(nn.Module):
    """One layer; `plan` says what it runs on each event type, `tokens_in` is n."""

    def __init__(self, plan: Mapping[str, frozenset[str]], tokens_in: int, config: KunlunConfig):
        super().__init__()
        self.weight_generation = WeightGeneration(
            tokens_in, config.summary_tokens, config.dim, gate=config.summary_gate, activation=config.activation
        )
        self.pool, self.to_context, self.ffn, self.attention = (nn.ModuleDict() for _ in range(4))
        for name, parts in plan.items():
            event = config.for_event(name)
            if "pool" in parts:
                self.pool[EVENT + name] = make_pooling(config, event)
                self.to_context[EVENT + name] = nn.Linear(event.dim, config.dim)
            if "ffn" in parts:
                self.ffn[EVENT + name] = PersonalizedFFN(
                    config.summary_tokens,
                    config.dim,
                    event.dim,
                    heads=event.heads,
                    width=event.ffn_width,
                    activation=config.ffn_activation,
                    pre_scale=1 / config.ffn_tau if config.ffn_scale == "pre" else 1.0,
                    post_scale=1 / config.ffn_tau if config.ffn_scale == "post" else 1.0,
                )
            if "attention" in parts:
                self.attention[EVENT + name] = WindowAttention(
                    event.dim, heads=event.heads, window=event.window, rote=config.rote
                )
        self.interaction = GlobalInteraction(
            config.summary_tokens + sum(config.for_event(name).tokens for name in plan),
            config.dim,
            experts=config.experts,
            fm_tokens=config.fm_tokens,
            linear_tokens=config.linear_tokens,
            rank=config.fm_rank,
            hidden=config.fm_hidden,
            activation=config.activation,
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
        """X', S' and H, each event type's under its name."""
        x_sum = self.weight_generation(x)
        history, after = dict(history), dict(events)
        for name in events:
            key = EVENT + name
            if key in self.pool:
                history[name] = self.to_context[key](self.pool[key](events[name], mask[name]))
            if key in self.ffn:
                after[name] = self.ffn[key](after[name], x_sum, mask[name])
            if key in self.attention:
                after[name] = self.attention[key](after[name], age[name], mask[name])
        x = self.interaction(torch.cat([x_sum, *(history[name] for name in events)], dim=1))
        return x, after, history


def make_pooling(config: KunlunConfig, event: EventConfig) -> HSP | SeedAttention:
    """HSP, or PMA as its ablation: learned queries alone, as many as tokens leave."""
    if config.pooling == "hsp":
        return HSP(event.seeds, event.tokens, event.dim, heads=event.heads, rank=event.kron_rank)
    return SeedAttention(event.tokens, event.dim, heads=event.heads, norm_seeds=False)


class Kunlun(nn.Module):
    """The model with its tables.

    Initial weights are PyTorch's own, or normal: to start where the JAX model starts, carry its weights over
    (`kunlun_jax.torch_reference.weights`).

    Args:
      schema: of the data; tables and inputs follow from it.
      config: sizes and readings. `dtype` and `implementation` say nothing here: it computes in the dtype of its
        parameters.
      dense_moments: of the dense features, used if config.standardize.
    """

    def __init__(self, schema: Schema, config: KunlunConfig, *, dense_moments: Moments | None = None):
        super().__init__()
        types = config.event_types(tuple(event.name for event in schema.events))
        # Sorted by name: so stand the H of the event types in the input of GlobalInteraction.
        self.schema = dataclasses.replace(schema, events=tuple(schema.event(name) for name in sorted(types)))
        self.tables = nn.ParameterDict(
            {
                TABLE + name: torch.randn(table.rows, config.embedding_dim) * config.embedding_scale
                for name, table in self.schema.tables.items()
            }
        )
        self.context = ContextTokens(
            schema,
            config.embedding_dim,
            config.dim,
            dense_tokens=config.dense_tokens,
            moments=dense_moments if config.standardize else None,
        )
        self.event_input = nn.ModuleDict(
            {
                EVENT + event.name: EventInput(
                    len(event.categorical),
                    len(event.dense),
                    config.embedding_dim,
                    config.for_event(event.name).dim,
                    kind=config.event_input,
                    age=config.age_feature,
                    activation=config.activation,
                )
                for event in self.schema.events
            }
        )
        plans = {event.name: layer_plan(config, config.for_event(event.name)) for event in self.schema.events}
        tokens = self.context.tokens
        self.layers = nn.ModuleList()
        for index in range(config.layers):
            self.layers.append(KunlunLayer({name: plan[index] for name, plan in plans.items()}, tokens, config))
            tokens = config.experts * (config.fm_tokens + config.linear_tokens)
        self.dropout = nn.Dropout(config.dropout)
        self.head = MLP((tokens * config.dim, *config.head_hidden, len(schema.tasks)), config.activation)

    def forward(self, batch: PaddedBatch) -> Float[Tensor, "batch tasks"]:
        """Logits. Dropout acts under `train()`."""
        x = self.context(batch.dense, self.embed_context(batch))
        of = {event.name: batch.events[event.name] for event in self.schema.events}
        age, mask = {name: e.age for name, e in of.items()}, {name: e.mask for name, e in of.items()}
        events = {
            name: self.event_input[EVENT + name](self.embed_events(name, e), e.dense, e.age) for name, e in of.items()
        }
        history: dict[str, Tensor] = {}
        for layer in self.layers:
            x, events, history = layer(x, events, history, age, mask)
        return self.head(self.dropout(x.flatten(1)))

    def embed(self, table: str, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape embedding"]:
        """Rows of a table."""
        return F.embedding(ids, self.tables[TABLE + table])

    def embed_context(self, batch: PaddedBatch) -> Float[Tensor, "batch features embedding"]:
        """One embedding each categorical feature, then the mean one each multi-valued feature, zeros for no ids."""
        rows = [self.embed(f.table_name, batch.categorical[:, i]) for i, f in enumerate(self.schema.categorical)]
        for feature in self.schema.multi_valued:
            lists = batch.multi_valued[feature.name]
            embedded = self.embed(feature.table_name, lists.ids) * lists.mask[..., None]
            rows.append(embedded.sum(1) / lists.mask.sum(1, keepdim=True).clamp(min=1))
        return torch.stack(rows, dim=1) if rows else batch.dense.new_zeros(len(batch.weights), 0, 0)

    def embed_events(self, name: str, events: Events) -> Float[Tensor, "batch time fields embedding"]:
        """The embeddings of the fields of one event type."""
        fields = self.schema.event(name).categorical
        rows = [self.embed(f.table_name, events.ids[..., i]) for i, f in enumerate(fields)]
        return torch.stack(rows, dim=2) if rows else events.dense.new_zeros(*events.age.shape, 0, 0)


def weighted_loss(logits: Float[Tensor, "batch tasks"], batch: PaddedBatch) -> Float[Tensor, ""]:
    """Mean LogLoss over examples by weight, summed over tasks; zero for a batch without weight."""
    losses = F.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")
    return (losses * batch.weights[:, None]).sum() / batch.weights.sum().clamp(min=1e-6)
