"""A preset whose model compiles quickly and has what matters on a mesh: a kernel, a large table, dense parameters."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from kunlun_jax.batch import Batch
from kunlun_jax.data.open import DataConfig
from kunlun_jax.data.pipeline import LoaderConfig
from kunlun_jax.data.schema import Schema
from kunlun_jax.data.sets.synthetic import SyntheticConfig
from kunlun_jax.flops import Part, part
from kunlun_jax.models.system import System, SystemConfig
from kunlun_jax.nn.embedding import Embedded
from kunlun_jax.nn.pooling import SeedAttention
from kunlun_jax.training.config import TrainConfig

SEEDS, HEADS = 2, 1


@dataclasses.dataclass(frozen=True)
class PoolingConfig(SystemConfig):
    """Sizes of `Pooling`."""

    def build(self, schema: Schema, **rest: Any) -> "Pooling":
        """A new one; arguments as `ModelConfig.build`."""
        return Pooling(schema, self, **rest)


class Pooling(System):
    """Histories of clicks, each pooled by two learned queries, and a linear head."""

    def __init__(self, schema: Schema, config: PoolingConfig, *, base_rate, dense_moments=None, rngs: nnx.Rngs):
        super().__init__(schema, config, dense_moments=dense_moments, rngs=rngs)
        rest = {"implementation": config.implementation, "dtype": config.compute_dtype, "rngs": rngs}
        pool = SeedAttention(SEEDS, config.dim, heads=HEADS, norm_seeds=False, **rest)
        self.pool = nnx.Dict(click=pool)
        self.make_head((self.context.tokens + SEEDS) * config.dim, config, base_rate, rngs)

    def __call__(
        self, batch: Batch, embedded: Embedded, *, dropout: nnx.Rngs | None = None
    ) -> Float[Array, "batch tasks"]:
        x, events, _ = self.inputs(batch, embedded)
        tokens = jnp.concatenate([x, self.pool["click"](events["click"])], axis=1)
        return self.logits(rearrange(tokens, "batch tokens dim -> batch (tokens dim)"), x, dropout)

    def middle_parts(self, lengths: Mapping[str, np.ndarray], batch: int) -> list[Part]:
        pool = self.pool["click"]
        return [part("pool click", pool, pool.flops(lengths["click"]) / batch)]


CONFIG = TrainConfig(
    data=DataConfig(options=SyntheticConfig(train_rows=256, valid_rows=8, test_rows=8, users=100_000)),
    loader=LoaderConfig(batch_size=16, max_events=40),
    model=PoolingConfig(
        dim=32,
        embedding_dim=4,
        skip_events=("impression", "purchase"),
        event_input="mlp",
        age_feature=False,
        rank_feature=False,
        tied_events=False,
        history_lengths=False,
        head_hidden=(),
    ),
)
