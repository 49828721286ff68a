"""DIN: each history weighed by what its events have to do with the candidate.

    e_t, c = embeddings of the event's and the candidate's fields that share a table      s_t = the event's token
    v_e    = sum_t a(e_t, c, s_t) s_t                                                     for each event type e
    logits = MLP([context tokens | v_1 | v_2 ...])

Source: DIN, arXiv 1706.06978 (P). A schema does not say which context features are the candidate: those that share a
table with a field of an event are, since they and the events speak of the same things (O). The two meet as they lie in
the table, with no map between them, as in the paper: "the same topic" is then there from the first step on, while maps
of their own would have to be brought into line first.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

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
from kunlun_jax.nn.target_attention import TargetAttention
from kunlun_jax.ranges import at_least


@dataclasses.dataclass(frozen=True)
class DINConfig(SystemConfig):
    """DIN's sizes and readings."""

    unit_hidden: tuple[int, ...] = (64, 32)
    """Hidden widths of the activation unit."""
    head_hidden: tuple[int, ...] = (512, 256)
    """Hidden widths of the MLP that ends in the logits."""
    event_input: Literal["masknet", "mlp"] = "mlp"
    """From event fields to tokens: a two-layer MLP (O), or masknet."""
    activation: str = "silu"
    """Activation of every plain MLP (P: Dice; O: SiLU, which like it is smooth around a zero of its own)."""

    RANGES: ClassVar = {"unit_hidden": at_least(1)}

    def build(self, schema: Schema, **rest: Any) -> "DIN":
        """A new DIN; arguments as `ModelConfig.build`."""
        return DIN(schema, self, **rest)


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
        self.attention = nnx.Dict()
        for name in self.event_names:
            self.attention[name] = TargetAttention(
                config.dim,
                len(self.schema.matches(name)) * config.embedding_dim,
                hidden=config.unit_hidden,
                activation=config.activation,
                dtype=config.compute_dtype,
                rngs=rngs,
            )
        self.make_head((self.context.tokens + len(self.event_names)) * config.dim, config, base_rate, rngs)

    def __call__(
        self, batch: Batch, embedded: Embedded, *, dropout: nnx.Rngs | None = None
    ) -> Float[Array, "batch tasks"]:
        """Logits, float32 (float64 where that is the dtype of the computation); dropout acts only where given."""
        x, events, _ = self.inputs(batch, embedded)
        found = [rearrange(x, "batch tokens dim -> batch (tokens dim)")]
        for name in self.event_names:
            candidate, fields = self.pairs(name, embedded)
            found.append(self.attention[name](events[name], fields, candidate))
        return self.logits(jnp.concatenate(found, axis=1), x, dropout)

    def middle_parts(self, lengths: Mapping[str, np.ndarray], batch: int) -> list[Part]:
        """Parameters and forward FLOPs per example of the activation units."""
        return [
            part(f"target attention {name}", unit, unit.flops(lengths[name]) / batch)
            for name, unit in self.attention.items()
        ]
