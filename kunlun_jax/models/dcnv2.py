"""DCNv2: a cross network beside a deep one, or before it.

    x_0 = flatten([context tokens | a mean token each event type]),   x_{i+1} = x_0 * (W_i x_i + b_i) + x_i
    logits = MLP_head([x_L | MLP_deep(x_0)])   parallel,   or MLP_head(MLP_deep(x_L))   stacked

Source: DCNv2, arXiv 2008.13535 (P), full-rank W or U V of a rank. A history enters as the mean of its events (O). The
head here is the output layer unless ``head_hidden`` makes more of it.
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
from kunlun_jax.nn.cross import CrossNetwork
from kunlun_jax.nn.embedding import Embedded
from kunlun_jax.nn.mlp import MLP, activation
from kunlun_jax.nn.pooling import MeanPooling
from kunlun_jax.ranges import at_least


@dataclasses.dataclass(frozen=True)
class DCNv2Config(SystemConfig):
    """DCNv2's sizes and readings."""

    cross_layers: int = 3
    """Cross layers (P: 1 to 4)."""
    cross_rank: int = 0
    """Rank of their maps; 0 is full matrices (P: either)."""
    deep_hidden: tuple[int, ...] = (512, 256)
    """Widths of the deep network, each with an activation after it."""
    structure: Literal["parallel", "stacked"] = "parallel"
    """Whether the deep network stands beside the cross network or after it (P: either)."""
    head_hidden: tuple[int, ...] = ()
    """Hidden widths of the MLP that ends in the logits (P: none)."""
    event_input: Literal["masknet", "mlp"] = "mlp"
    """From event fields to tokens: a two-layer MLP (O), or masknet."""
    activation: str = "relu"
    """Activation of every plain MLP (P: ReLU)."""

    RANGES: ClassVar = {"cross_layers": at_least(1), "cross_rank": at_least(0), "deep_hidden": at_least(1)}

    def __post_init__(self):
        super().__post_init__()
        if not self.deep_hidden:
            raise ValueError("deep_hidden is empty; name at least one width")

    def build(self, schema: Schema, **rest: Any) -> "DCNv2":
        """A new DCNv2; arguments as `ModelConfig.build`."""
        return DCNv2(schema, self, **rest)


class DCNv2(System):
    """The model without its tables; arguments and errors are those of `kunlun_jax.models.kunlun.Kunlun`."""

    def __init__(
        self,
        schema: Schema,
        config: DCNv2Config,
        *,
        base_rate: tuple[float, ...],
        dense_moments: Moments | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(schema, config, dense_moments=dense_moments, rngs=rngs)
        rest = {"dtype": config.compute_dtype, "rngs": rngs}
        channels = (self.context.tokens + len(self.event_names)) * config.dim
        self.pool = MeanPooling()
        self.cross = CrossNetwork(channels, layers=config.cross_layers, rank=config.cross_rank, **rest)
        self.deep = MLP((channels, *config.deep_hidden), activation=config.activation, **rest)
        self.stacked, self.activation = config.structure == "stacked", config.activation
        width = config.deep_hidden[-1]
        self.make_head(width if self.stacked else channels + width, config, base_rate, rngs)

    def __call__(
        self, batch: Batch, embedded: Embedded, *, dropout: nnx.Rngs | None = None
    ) -> Float[Array, "batch tasks"]:
        """Logits, float32 (float64 where that is the dtype of the computation); dropout acts only where given."""
        x, events, _ = self.inputs(batch, embedded)
        tokens = jnp.concatenate([x, *(self.pool(events[name]) for name in self.event_names)], axis=1)
        tokens = rearrange(tokens, "batch tokens dim -> batch (tokens dim)")
        crossed = self.cross(tokens)
        deep = activation(self.activation)(self.deep(crossed if self.stacked else tokens))
        return self.logits(deep if self.stacked else jnp.concatenate([crossed, deep], axis=1), x, dropout)

    def middle_parts(self, lengths: Mapping[str, np.ndarray], batch: int) -> list[Part]:
        """Parameters and forward FLOPs per example of the two networks."""
        return [part("cross", self.cross, self.cross.flops()), part("deep", self.deep, self.deep.flops())]
