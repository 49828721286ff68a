"""DIN: each history weighed by what its events have to do with the candidate.

    c      = W [embeddings of the candidate's features]
    v_e    = sum_t a(s_t, c) s_t                            for each event type e
    logits = MLP([context tokens | v_1 | v_2 ...])

Source: DIN, arXiv 1706.06978 (P). A schema does not say which context features are the candidate: by default those that
share a table with a field of an event, since they and the events speak of the same things, and all of them where none
does (O). Events and candidate meet in `dim` channels, each by a map of its own (O).
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from kunlun_jax.batch import Batch
from kunlun_jax.data.dataset import Moments
from kunlun_jax.data.schema import Schema
from kunlun_jax.flops import Part, part
from kunlun_jax.models.system import System, SystemConfig
from kunlun_jax.nn.embedding import Embedded
from kunlun_jax.nn.mlp import linear_flops
from kunlun_jax.nn.target_attention import TargetAttention


@dataclasses.dataclass(frozen=True)
class DINConfig(SystemConfig):
    """DIN's sizes and readings."""

    candidate: tuple[str, ...] = ()
    """Categorical context features that are the candidate; empty is those that share a table with an event (O)."""
    unit_hidden: tuple[int, ...] = (64, 32)
    """Hidden widths of the activation unit."""
    head_hidden: tuple[int, ...] = (512, 256)
    """Hidden widths of the MLP that ends in the logits."""
    event_input: Literal["masknet", "mlp"] = "mlp"
    """From event fields to tokens: a two-layer MLP (O), or masknet."""
    activation: str = "silu"
    """Activation of every plain MLP (P: Dice; O: SiLU, which like it is smooth around a zero of its own)."""


def candidate_columns(schema: Schema, names: tuple[str, ...]) -> tuple[int, ...]:
    """Columns of ``batch.categorical`` that are the candidate.

    Raises:
      ValueError: a name is no categorical context feature, or there is no such feature.
    """
    available = [feature.name for feature in schema.categorical]
    unknown = sorted(set(names) - set(available))
    if unknown or not available:
        raise ValueError(f"model.candidate names {unknown}; the schema's categorical features are {available}")
    if names:
        return tuple(available.index(name) for name in names)
    tables = {field.table_name for event in schema.events for field in event.categorical}
    shared = [i for i, feature in enumerate(schema.categorical) if feature.table_name in tables]
    return tuple(shared or range(len(available)))


class DIN(System):
    """The model without its tables; arguments and errors are those of `kunlun_jax.models.kunlun.Kunlun`."""

    def __init__(
        self,
        schema: Schema,
        config: DINConfig,
        *,
        base_rate: tuple[float, ...],
        dense_moments: Moments | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(schema, config, dense_moments=dense_moments, rngs=rngs)
        self.dtype = config.compute_dtype
        self.columns = candidate_columns(self.schema, config.candidate) if self.event_names else ()
        channels = len(self.columns) * config.embedding_dim
        self.candidate = nnx.Linear(channels, config.dim, dtype=self.dtype, rngs=rngs) if channels else None
        self.attention = nnx.Dict()
        for name in self.event_names:
            self.attention[name] = TargetAttention(
                config.dim, hidden=config.unit_hidden, activation=config.activation, dtype=self.dtype, rngs=rngs
            )
        self.make_head((self.context.tokens + len(self.event_names)) * config.dim, config, base_rate, rngs)

    def __call__(
        self, batch: Batch, embedded: Embedded, *, dropout: nnx.Rngs | None = None
    ) -> Float[Array, "batch tasks"]:
        """Logits, float32 (float64 where that is the dtype of the computation); dropout acts only where given."""
        x, events, _ = self.inputs(batch, embedded)
        found = [rearrange(x, "batch tokens dim -> batch (tokens dim)")]
        if self.candidate is not None:
            features = jnp.stack([embedded.categorical[:, column] for column in self.columns], axis=1)
            c = self.candidate(rearrange(features, "batch features dim -> batch (features dim)").astype(self.dtype))
            found += [self.attention[name](events[name], c) for name in self.event_names]
        return self.logits(jnp.concatenate(found, axis=1), dropout)

    def middle_parts(self, lengths: Mapping[str, np.ndarray], batch: int) -> list[Part]:
        """Parameters and forward FLOPs per example of the candidate's map and the activation units."""
        if self.candidate is None:
            return []
        parts = [part("candidate", self.candidate, linear_flops(self.candidate))]
        for name, unit in self.attention.items():
            parts.append(part(f"target attention {name}", unit, unit.flops(lengths[name]) / batch))
        return parts
