"""DLRM: dot products of embeddings, and the dense features through a net of their own.

    z      = MLP_bottom(dense token)                 [x_1 ..] = categorical tokens, a mean token each event type
    logits = MLP_top([z | <x_i, x_j> for i < j among z, x_1, ...])

Source: DLRM, arXiv 1906.00091 (P). A history enters as the mean of its events, as a bag of ids does there; that an
event's fields pass an event input first is ours (O), and so is a mean for DLRM's sum.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from kunlun_jax.batch import Batch
from kunlun_jax.data.dataset import Moments
from kunlun_jax.data.schema import Schema
from kunlun_jax.flops import Part, part
from kunlun_jax.models.system import System, SystemConfig
from kunlun_jax.nn.cross import dot_flops, dot_products, pairs_of
from kunlun_jax.nn.embedding import Embedded
from kunlun_jax.nn.mlp import MLP
from kunlun_jax.nn.pooling import MeanPooling
from kunlun_jax.ranges import at_least


@dataclasses.dataclass(frozen=True)
class DLRMConfig(SystemConfig):
    """DLRM's sizes; head_hidden is its top MLP."""

    bottom_hidden: tuple[int, ...] = (256,)
    """Hidden widths of the bottom MLP, on the dense token."""
    head_hidden: tuple[int, ...] = (512, 256)
    """Hidden widths of the top MLP, which ends in the logits."""
    event_input: Literal["masknet", "mlp"] = "mlp"
    """From event fields to tokens: a two-layer MLP (O), or masknet."""
    activation: str = "relu"
    """Activation of every plain MLP (P: ReLU)."""

    RANGES: ClassVar = {"bottom_hidden": at_least(1)}

    def __post_init__(self):
        super().__post_init__()
        if self.dense_tokens != 1:
            raise ValueError(f"dense_tokens is {self.dense_tokens}; the bottom MLP has one output, so it must be 1")

    def build(self, schema: Schema, **rest: Any) -> "DLRM":
        """A new DLRM; arguments as `ModelConfig.build`."""
        return DLRM(schema, self, **rest)


class DLRM(System):
    """The model without its tables; arguments and errors are those of `kunlun_jax.models.kunlun.Kunlun`."""

    def __init__(
        self,
        schema: Schema,
        config: DLRMConfig,
        *,
        base_rate: tuple[float, ...],
        dense_moments: Moments | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(schema, config, dense_moments=dense_moments, rngs=rngs)
        sizes = (config.dim, *config.bottom_hidden, config.dim)
        rest = {"activation": config.activation, "dtype": config.compute_dtype, "rngs": rngs}
        self.bottom = MLP(sizes, **rest) if schema.dense else None
        self.pool = MeanPooling()
        self.tokens, self.dim = self.context.tokens + len(self.event_names), config.dim
        dense = config.dim if self.bottom is not None else 0
        self.make_head(dense + pairs_of(self.tokens), config, base_rate, rngs)

    def __call__(
        self, batch: Batch, embedded: Embedded, *, dropout: nnx.Rngs | None = None
    ) -> Float[Array, "batch tasks"]:
        """Logits, float32 (float64 where that is the dtype of the computation); dropout acts only where given."""
        x, events, _ = self.inputs(batch, embedded)
        histories = [self.pool(events[name]) for name in self.event_names]
        if self.bottom is None:
            return self.logits(dot_products(jnp.concatenate([x, *histories], axis=1)), x, dropout)
        z = self.bottom(x[:, 0])
        tokens = jnp.concatenate([z[:, None, :], x[:, 1:], *histories], axis=1)
        return self.logits(jnp.concatenate([z, dot_products(tokens)], axis=1), x, dropout)

    def middle_parts(self, lengths: Mapping[str, np.ndarray], batch: int) -> list[Part]:
        """Parameters and forward FLOPs per example of the bottom MLP and the dot products."""
        bottom = [part("bottom", self.bottom, self.bottom.flops())] if self.bottom is not None else []
        return [*bottom, Part("dot products", 0, dot_flops(self.tokens, self.dim))]
