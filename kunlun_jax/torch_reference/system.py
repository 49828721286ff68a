"""What the twins share: tables, context and event input, and a head. Each system is a subclass.

Module names are those of the JAX models, with a prefix before event types and tables.
"""

import dataclasses

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from kunlun_jax.data.dataset import Moments
from kunlun_jax.data.schema import Schema
from kunlun_jax.models.system import SystemConfig, shared_features
from kunlun_jax.nn.table_rows import place, stored_rows
from kunlun_jax.torch_reference.batch import Events, PaddedBatch
from kunlun_jax.torch_reference.context import ContextTokens
from kunlun_jax.torch_reference.event_input import EventInput, unit_rank
from kunlun_jax.torch_reference.mlp import MLP

EVENT = "event_"
"""Prefix of an event type's name in the name of its module: plain "type" is a method of every module."""
TABLE = "table_"
"""Prefix of a table's name in the name of its parameter."""


class System(nn.Module):
    """Tables, input and head of a model.

    Initial weights are PyTorch's own, or normal: to start where the JAX model starts, carry its weights over
    (`kunlun_jax.torch_reference.weights`).

    Args:
      schema: of the data; tables and inputs follow from it.
      config: sizes and readings. `dtype` and `implementation` have no effect: it computes in the dtype of its
        parameters.
      event_dims: width of the tokens of each event type; None is `config.dim` for all.
      dense_moments: of the dense features, used if config.standardize.
    """

    def __init__(
        self, schema: Schema, config: SystemConfig, *, event_dims: dict[str, int] | None, dense_moments: Moments | None
    ):
        super().__init__()
        self.history_lengths, self.rank_feature = config.history_lengths, config.rank_feature
        types = config.event_types(tuple(event.name for event in schema.events))
        # Sorted by name, the order in which the tokens of the event types are read.
        self.schema = dataclasses.replace(schema, events=tuple(schema.event(name) for name in sorted(types)))
        self.tables = nn.ParameterDict(
            {
                TABLE + name: torch.randn(stored_rows(table.rows), config.embedding_dim) * config.embedding_scale
                for name, table in self.schema.tables.items()
            }
        )
        self.context = ContextTokens(
            schema,
            config.embedding_dim,
            config.dim,
            dense_tokens=config.dense_tokens,
            moments=dense_moments if config.standardize else None,
            lengths=len(types) if config.history_lengths else 0,
        )
        tables = [feature.table_name for feature in (*schema.categorical, *schema.multi_valued)]
        self.event_input = nn.ModuleDict(
            {
                EVENT + event.name: EventInput(
                    len(event.categorical),
                    len(event.dense) + config.rank_feature,
                    config.embedding_dim,
                    config.dim if event_dims is None else event_dims[event.name],
                    kind=config.event_input,
                    age=config.age_feature,
                    activation=config.activation,
                    tied=shared_features(event, tables) if config.tied_events else (),
                )
                for event in self.schema.events
            }
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The event types that the model reads, in the order of their tokens."""
        return tuple(event.name for event in self.schema.events)

    def make_head(self, inputs: int, config: SystemConfig) -> None:
        """Dropout, the MLP from `inputs` channels to the logits, and with config.wide a linear map of the context."""
        self.dropout = nn.Dropout(config.dropout)
        tasks = len(self.schema.tasks)
        self.head = MLP((inputs, *config.head_hidden, tasks), config.activation)
        self.wide = nn.Linear(self.context.tokens * config.dim, tasks, bias=False) if config.wide else None

    def inputs(self, batch: PaddedBatch) -> tuple[Float[Tensor, "batch tokens dim"], dict[str, Tensor]]:
        """Context tokens; event tokens ``[batch, time, dim]`` by type."""
        counts = [batch.events[name].mask.sum(1, dtype=batch.dense.dtype) for name in self.names]
        use = counts and self.history_lengths
        lengths = torch.stack(counts, dim=1) if use else batch.dense.new_zeros(len(batch.weights), 0)
        x = self.context(batch.dense, self.embed_context(batch), lengths)
        events = {}
        for name in self.names:
            e = batch.events[name]
            dense = torch.cat([e.dense, unit_rank(e.mask, e.dense.dtype)], dim=-1) if self.rank_feature else e.dense
            events[name] = self.event_input[EVENT + name](
                self.embed_events(name, e), dense, e.age, self.context.project
            )
        return x, events

    def logits(
        self, x: Float[Tensor, "batch *channels"], context: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch tasks"]:
        """The head on flattened channels, and the linear map of the context. Dropout acts under `train()`."""
        logits = self.head(self.dropout(x.flatten(1)))
        return logits if self.wide is None else logits + self.wide(context.flatten(1))

    def embed(self, table: str, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape embedding"]:
        """Rows of a table, stored as ours are."""
        return F.embedding(place(ids, self.schema.tables[table].rows), self.tables[TABLE + table])

    def embed_context(self, batch: PaddedBatch) -> Float[Tensor, "batch features embedding"]:
        """One embedding per categorical feature, then a mean per multi-valued feature, zeros for no ids."""
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
    """Mean LogLoss over the examples with a label, by weight, summed over tasks; zero for a batch without weight."""
    there = ~batch.labels.isnan()
    losses = F.binary_cross_entropy_with_logits(logits, batch.labels.nan_to_num(), reduction="none")
    weights, total = batch.weights[:, None] * there, batch.weights.sum()
    scale = torch.where(there.all(0), 1.0, total / weights.sum(0).clamp(min=1e-6))
    return (losses * weights * scale).sum() / total.clamp(min=1e-6)
