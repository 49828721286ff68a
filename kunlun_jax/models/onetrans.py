"""OneTrans: one transformer over everything the user did and every feature, which reads and crosses them at once.

    S = the events of all types + a learned vector of their type, oldest first
    X^0 = [S | context tokens],   X^{l+1} = mixed block(X^l),   logits = MLP(RMSNorm(context tokens of X^L))

A block has weights that all events share and weights of its own for each context token. Fewer events go on from each
block, the newest, and none from the last one (`nn.mixed`).

Source: OneTrans, arXiv 2510.26104 (P). Ours (O):
* Context tokens are those that all systems have, one a feature, in the order of the schema; the paper cuts one MLP of
  all features into tokens ("auto-split").
* Histories differ in length and stay packed. How many events go on is the same for all, and a history that is shorter
  goes on whole. The paper rounds that number to multiples of 32.
* The last norm, as pre-norm transformers have it, which `last_norm` takes away.
* Of time and place the model knows what the events' inputs say (`age_feature`, `rank_feature`) and what the mask hides;
  the paper names no encoding of positions.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

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
from kunlun_jax.nn.init import normal
from kunlun_jax.nn.mixed import MixedBlock
from kunlun_jax.nn.sequence import merge, no_rows
from kunlun_jax.ranges import above, at_least
from pallas_kernels.dispatch import accumulator


@dataclasses.dataclass(frozen=True)
class OneTransConfig(SystemConfig):
    """OneTrans' sizes and readings."""

    layers: int = 3
    """Blocks (P: 6 or 8)."""
    heads: int = 2
    """Attention heads (P: 4)."""
    ffn_multiple: float = 4.0
    """Width between the FFN's two maps, times dim (O; the paper does not say)."""
    first_queries: int | None = 256
    """Newest events that go on from the first block; from there their number falls linearly, to none from the last (P,
    who start from 1190). None: all go on from every block but the last, whose events nothing would read."""
    causal: bool = True
    """Whether a token reads only itself and those before it (P), or all of them (the paper's ablation)."""
    aligned: bool = True
    """Whether queries and keys start near the identity, so that candidate and events that are alike find each other
    from the first step on (O)."""
    branch_start: float = 1.0
    """What the last map of attention and of the FFN starts at, times LeCun's (O). Near `embedding_scale`, the head
    reads ids from the first step on, since branches read normalized tokens and would add vectors far longer than short
    embeddings."""
    last_norm: bool = True
    """Whether the head reads context tokens that are normalized (O). Without, the length of a token is left to tell how
    much is known, and the token of an id that was hardly trained is short, as `token_norm` is to Kunlun and Wukong."""
    type_scale: float = 0.1
    """Standard deviation that the vectors of the event types start with (O); much above that of the embeddings, they
    hide what an event is (LOG.md)."""
    event_input: Literal["masknet", "mlp"] = "mlp"
    """From event fields to tokens: a two-layer MLP (P), or masknet."""
    activation: str = "silu"
    """Activation of the FFN and of every plain MLP (O; the paper does not say)."""

    RANGES: ClassVar = {
        "layers": at_least(1),
        "heads": at_least(1),
        "ffn_multiple": above(0),
        "first_queries": at_least(0),
        "branch_start": at_least(0),
        "type_scale": at_least(0),
    }

    def __post_init__(self):
        super().__post_init__()
        if self.dim % self.heads:
            raise ValueError(f"dim is {self.dim}, heads {self.heads}; a head needs a whole width")
        if not self.ffn_multiple * self.dim >= 1:
            raise ValueError(f"ffn_multiple is {self.ffn_multiple}; times dim it must be at least 1")

    def queries(self) -> tuple[int | None, ...]:
        """How many events of an example go on from each block, None for all; 0 from the last."""
        last = self.layers - 1
        if self.first_queries is None:
            return *((None,) * last), 0
        return *(round(self.first_queries * (last - layer) / last) for layer in range(last)), 0

    def build(self, schema: Schema, **rest: Any) -> "OneTrans":
        """A new OneTrans; arguments as `ModelConfig.build`."""
        return OneTrans(schema, self, **rest)


class OneTrans(System):
    """The model without its tables; arguments and errors are those of `kunlun_jax.models.kunlun.Kunlun`."""

    def __init__(
        self,
        schema: Schema,
        config: OneTransConfig,
        *,
        base_rate: tuple[float, ...],
        dense_moments: Moments | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(schema, config, dense_moments=dense_moments, rngs=rngs)
        dtype, dim, tokens = config.compute_dtype, config.dim, self.context.tokens
        # Orbax refuses to save an array without elements, so without events there is none.
        types = (len(self.event_names), dim)
        self.types = nnx.Param(config.type_scale * normal(rngs.params(), types)) if self.event_names else None
        self.layers = nnx.List(
            MixedBlock(
                dim,
                tokens,
                heads=config.heads,
                hidden=round(config.ffn_multiple * dim),
                queries=queries,
                causal=config.causal,
                activation=config.activation,
                start=config.branch_start,
                aligned=config.aligned,
                implementation=config.implementation,
                dtype=dtype,
                rngs=rngs,
            )
            for queries in config.queries()
        )
        self.norm = nnx.RMSNorm(dim, epsilon=1e-6, dtype=accumulator(dtype), rngs=rngs) if config.last_norm else None
        self.make_head(tokens * dim, config, base_rate, rngs)

    def __call__(
        self, batch: Batch, embedded: Embedded, *, dropout: nnx.Rngs | None = None
    ) -> Float[Array, "batch tasks"]:
        """Logits, float32 (float64 where that is the dtype of the computation); dropout acts only where given."""
        context, events, ages = self.inputs(batch, embedded)
        if self.types is not None:
            types = zip(self.event_names, self.types[...].astype(context.dtype), strict=True)
            history, _ = merge({name: events[name].replace(events[name].values + e[None]) for name, e in types}, ages)
        else:
            history = no_rows(batch.size, context.shape[-1], context.dtype)
        x = context
        for layer in self.layers:
            history, x = layer(history, x)
        if self.norm is not None:
            x = self.norm(x)
        return self.logits(rearrange(x, "batch tokens dim -> batch (tokens dim)"), context, dropout)

    def middle_parts(self, lengths: Mapping[str, np.ndarray], batch: int) -> list[Part]:
        """Parameters and forward FLOPs per example of the types' vectors, the blocks and the last norm."""
        events = sum((np.asarray(lengths[name], np.int64) for name in self.event_names), np.zeros(batch, np.int64))
        parts = [] if self.types is None else [Part("event types", self.types.size, 0)]
        for i, layer in enumerate(self.layers):
            parts.append(part(f"layer {i}", layer, layer.flops(events) / batch))
            events = layer.kept(events)
        return parts if self.norm is None else [*parts, part("last norm", self.norm, 0)]
