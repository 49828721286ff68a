"""Wukong: factorization machines stacked, so that layer i holds interactions of order 1 .. 2^i.

    X^0     = [context tokens | H_1 | H_2 ...],    H_e = PMA_e(S_e), or the mean of S_e
    X^{i+1} = LN([FMB(X^i) | LCB(X^i)] + X^i)      the residual linearly compressed where the token counts differ
    logits  = MLP(flatten(X^L))

FMB(X) = reshape(MLP(LN(flatten(X X^T Y)))), LCB(X) = W_L X. Source: Wukong, arXiv 2403.02545 (P); how a history of any
length enters it, as learned queries or a mean, is ours (O). PMA runs on the kernel of `seed_attention`.
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
from kunlun_jax.nn.interaction import WukongExpert
from kunlun_jax.nn.pooling import MeanPooling, SeedAttention
from kunlun_jax.ranges import at_least


@dataclasses.dataclass(frozen=True)
class WukongConfig(SystemConfig):
    """Wukong's sizes and readings."""

    layers: int = 3
    """L (P: 1 to 4 on Criteo)."""
    fm_tokens: int = 8
    """n_F, tokens that the FM block makes (P: 8 or 16)."""
    linear_tokens: int = 8
    """n_L, tokens that the linear compression makes (P: 8 or 16)."""
    fm_rank: int = 24
    """k, columns of Y in X X^T Y (P: 24)."""
    fm_hidden: tuple[int, ...] = (256,)
    """Hidden widths of the deep net after FM."""
    unit_products: bool = True
    """Whether tokens are scaled to length 1 before FM multiplies them (O)."""
    token_norm: bool = True
    """Whether a LayerNorm follows each Wukong layer, token by token (P); without it tokens keep their length, which is
    short for ids that were hardly trained (O)."""
    history_pooling: Literal["pma", "mean"] = "pma"
    """How a history becomes tokens (O): learned queries that attend to it, or its mean."""
    history_tokens: int = 4
    """Tokens of each event type's history under PMA (O)."""
    history_heads: int = 2
    """Heads of PMA (O)."""
    activation: str = "relu"
    """Activation of every plain MLP (P: ReLU)."""

    RANGES: ClassVar = {
        "layers": at_least(1),
        "fm_tokens": at_least(1),
        "linear_tokens": at_least(1),
        "fm_rank": at_least(1),
        "fm_hidden": at_least(1),
        "history_tokens": at_least(1),
        "history_heads": at_least(1),
    }

    def __post_init__(self):
        super().__post_init__()
        if self.history_pooling == "pma" and self.dim % self.history_heads:
            raise ValueError(f"dim is {self.dim}, history_heads {self.history_heads}; a head needs a whole width")

    def build(self, schema: Schema, **rest: Any) -> "Wukong":
        """A new Wukong; arguments as `ModelConfig.build`."""
        return Wukong(schema, self, **rest)


class Wukong(System):
    """The model without its tables; arguments and errors are those of `kunlun_jax.models.kunlun.Kunlun`."""

    def __init__(
        self,
        schema: Schema,
        config: WukongConfig,
        *,
        base_rate: tuple[float, ...],
        dense_moments: Moments | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(schema, config, dense_moments=dense_moments, rngs=rngs)
        rest = {"dtype": config.compute_dtype, "rngs": rngs}
        self.pool = nnx.Dict()
        for name in self.event_names:
            self.pool[name] = (
                SeedAttention(
                    config.history_tokens,
                    config.dim,
                    heads=config.history_heads,
                    norm_seeds=False,
                    implementation=config.implementation,
                    **rest,
                )
                if config.history_pooling == "pma"
                else MeanPooling()
            )
        tokens = self.context.tokens + sum(pool.tokens_out for pool in self.pool.values())
        self.layers = nnx.List()
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
                **rest,
            )
            tokens = layer.tokens_out
            self.layers.append(layer)
        self.make_head(tokens * config.dim, config, base_rate, rngs)

    def __call__(
        self, batch: Batch, embedded: Embedded, *, dropout: nnx.Rngs | None = None
    ) -> Float[Array, "batch tasks"]:
        """Logits, float32 (float64 where that is the dtype of the computation); dropout acts only where given."""
        context, events, _ = self.inputs(batch, embedded)
        x = jnp.concatenate([context, *(self.pool[name](events[name]) for name in self.event_names)], axis=1)
        for layer in self.layers:
            x = layer(x)
        return self.logits(rearrange(x, "batch tokens dim -> batch (tokens dim)"), context, dropout)

    def middle_parts(self, lengths: Mapping[str, np.ndarray], batch: int) -> list[Part]:
        """Parameters and forward FLOPs per example of the pools and the layers."""
        pools = [part(f"pooling {name}", pool, pool.flops(lengths[name]) / batch) for name, pool in self.pool.items()]
        return pools + [part(f"layer {i}", layer, layer.flops()) for i, layer in enumerate(self.layers)]
