"""Pooled product: the simplest model that counts matches, and so the floor for every deeper one.

    g_t    = sigmoid(MLP([log age | dense fields | log rank]))           `gates` of them for each event
    p_ef   = squash(sum_t g_t e_tf) * c_f                                event type e, field f that shares a table
    h_e    = squash(sum_t g_t s_t)                                       what the candidate has no part in
    logits = MLP([context tokens | p_11 | p_12 ... | h_1 | h_2 ...])

e_tf and c_f are embeddings of one table, so the product's channels add up to the inner product of the candidate with
all that the user did. Sums, not means: how often counts. squash(x) = sign(x) log(1 + |x|) keeps the longest histories
in the range of the others.

Source: ours (O), after FM's inner product of pooled embeddings (Rendle 2010).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from kunlun_jax.batch import Batch, Jagged
from kunlun_jax.data.dataset import Moments
from kunlun_jax.data.schema import Schema
from kunlun_jax.flops import Part, part
from kunlun_jax.models.system import System, SystemConfig
from kunlun_jax.nn.embedding import Embedded
from kunlun_jax.nn.event_input import unit_age
from kunlun_jax.nn.mlp import MLP
from kunlun_jax.ranges import at_least
from pallas_kernels.jagged import zero_padding


@dataclasses.dataclass(frozen=True)
class PooledProductConfig(SystemConfig):
    """Sizes of the pooled product."""

    gates: int = 2
    """Weights of each event, of which each makes sums of its own: at least one for the new and one for the old."""
    gate_hidden: tuple[int, ...] = (16,)
    """Hidden widths of the MLP that makes them."""
    head_hidden: tuple[int, ...] = (512, 256)
    """Hidden widths of the MLP that ends in the logits."""
    event_input: Literal["masknet", "mlp"] = "mlp"
    """From event fields to tokens: a two-layer MLP (O), or masknet."""

    RANGES: ClassVar = {"gates": at_least(1), "gate_hidden": at_least(1)}

    def build(self, schema: Schema, **rest: Any) -> "PooledProduct":
        """A new PooledProduct; arguments as `ModelConfig.build`."""
        return PooledProduct(schema, self, **rest)


def squash(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """sign(x) log(1 + |x|)."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


class PooledProduct(System):
    """The model without its tables; arguments and errors are those of `kunlun_jax.models.kunlun.Kunlun`."""

    def __init__(
        self,
        schema: Schema,
        config: PooledProductConfig,
        *,
        base_rate: tuple[float, ...],
        dense_moments: Moments | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(schema, config, dense_moments=dense_moments, rngs=rngs)
        self.dtype = config.compute_dtype
        self.gate = nnx.Dict()
        channels = self.context.tokens * config.dim
        for name in self.event_names:
            sizes = (1 + len(self.schema.event(name).dense) + config.rank_feature, *config.gate_hidden, config.gates)
            self.gate[name] = MLP(sizes, activation=config.activation, dtype=self.dtype, rngs=rngs)
            channels += config.gates * (len(self.schema.matches(name)) * config.embedding_dim + config.dim)
        self.make_head(channels, config, base_rate, rngs)

    def __call__(
        self, batch: Batch, embedded: Embedded, *, dropout: nnx.Rngs | None = None
    ) -> Float[Array, "batch tasks"]:
        """Logits, float32 (float64 where that is the dtype of the computation); dropout acts only where given."""
        x, events, age = self.inputs(batch, embedded)
        found = [rearrange(x, "batch tokens dim -> batch (tokens dim)")]
        for name in self.event_names:
            packed = batch.events[name]
            inputs = jnp.concatenate([unit_age(age[name])[:, None], self.event_dense(packed)], axis=1).astype(
                self.dtype
            )
            gates = jax.nn.sigmoid(self.gate[name](inputs))
            candidate, fields = self.pairs(name, embedded)
            sums = squash(gated_sums(packed.replace(fields.astype(self.dtype)), gates))
            found.append(rearrange(sums * candidate.astype(self.dtype)[:, None], "batch ... -> batch (...)"))
            tokens = packed.replace(events[name].values[:, None])
            found.append(rearrange(squash(gated_sums(tokens, gates)), "batch ... -> batch (...)"))
        return self.logits(jnp.concatenate(found, axis=1), x, dropout)

    def middle_parts(self, lengths: Mapping[str, np.ndarray], batch: int) -> list[Part]:
        """Parameters and forward FLOPs per example of the gates; sums and products are not counted."""
        return [
            part(f"gate {name}", gate, gate.flops() * lengths[name].sum() / batch) for name, gate in self.gate.items()
        ]


def gated_sums(values: Jagged, gates: Float[Array, "rows gates"]) -> Float[Array, "batch gates fields dim"]:
    """Sum over each example's events of gate times value, for values ``[rows, fields, dim]``; zeros for no events."""
    weighed = gates[:, :, None, None] * values.values[:, None]
    weighed = zero_padding(weighed, values.mask())
    return jax.ops.segment_sum(weighed, values.example_ids(), num_segments=values.lengths.shape[0])
