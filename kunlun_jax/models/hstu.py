"""HSTU for ranking: one causal sequence of everything the user did, with the candidate as its last token.

    S  = the events of all types, oldest first;   c = MLP(flatten(context tokens)) + m^-1/2 sum_f x_f
    X^0 = [S | c],   X^{l+1} = HSTU block(X^l),   logits = MLP(X^L of the last token [| context tokens])

Source: HSTU, arXiv 2402.17152 (P). Ours (O): every event type keeps an event input of its own, which tells the types
apart; the one candidate token holds all context features, so that the model sees what the others see, and the m of them
that share a table with events once more as they are, so that candidate and events meet in the same coordinates; the
head may read the features beside it (`head_context`; M multiplies the two, after an MLP of the item's). Merging
and appending keep the packed layout (`nn.sequence`). The attention has biases and a causal mask that the fused kernels
lack and runs as plain XLA (`nn.causal_pointwise`); ``--model.no-biased`` takes both away and runs on `gdpa`.
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
from kunlun_jax.nn.hstu import HSTUBlock
from kunlun_jax.nn.mlp import MLP
from kunlun_jax.nn.sequence import append, last_rows, merge, no_rows
from kunlun_jax.ranges import above, at_least, rate


@dataclasses.dataclass(frozen=True)
class HSTUConfig(SystemConfig):
    """HSTU's sizes and readings."""

    layers: int = 3
    """Blocks."""
    heads: int = 2
    """Attention heads; U, V, Q and K are as wide as the rows (O)."""
    sequence_scale: float = 1000.0
    """n, what a sum over keys is divided by: the longest sequence (P)."""
    biased: bool = True
    """Whether attention is causal and has biases of position and time (P); without, it runs on gdpa (O)."""
    positions: int = 256
    """Relative positions with a bias of their own; the last one holds for all that is farther (O)."""
    time_buckets: int = 64
    """Buckets of time gaps with a bias of their own, each 0.301 wide in the logarithm of seconds (M; number O)."""
    candidate_hidden: tuple[int, ...] = (128,)
    """Hidden widths of the MLP from context tokens to the candidate's (O)."""
    tied_candidate: bool = True
    """Whether the context tokens that share a table with events are added to the candidate's, whose MLP then starts at
    `event_mlp_start`, as that of the events does (O)."""
    head_context: bool = False
    """Whether the head reads the context tokens beside the candidate's, as DIN's does (O): features then meet at their
    full width and not in the one token alone."""
    aligned: bool = True
    """Whether U, V, Q and K start near the identity, so that tokens that are alike find each other (O)."""
    branch_start: float = 1.0
    """What the last map of each block starts at, times LeCun's (O). Near `embedding_scale`, the head reads ids from the
    first step on, since blocks read normalized rows and would add vectors far longer than short embeddings."""
    block_dropout: float = 0.0
    """Dropout rate inside each block."""
    event_input: Literal["masknet", "mlp"] = "mlp"
    """From event fields to tokens: a two-layer MLP (O), or masknet."""
    activation: str = "silu"
    """Activation of every plain MLP (O)."""

    RANGES: ClassVar = {
        "layers": at_least(1),
        "heads": at_least(1),
        "sequence_scale": above(0),
        "positions": at_least(1),
        "time_buckets": at_least(1),
        "candidate_hidden": at_least(1),
        "branch_start": at_least(0),
        "block_dropout": rate(),
    }

    def __post_init__(self):
        super().__post_init__()
        if self.dim % self.heads:
            raise ValueError(f"dim is {self.dim}, heads {self.heads}; a head needs a whole width")

    def build(self, schema: Schema, **rest: Any) -> "HSTU":
        """A new HSTU; arguments as `ModelConfig.build`."""
        return HSTU(schema, self, **rest)


class HSTU(System):
    """The model without its tables; arguments and errors are those of `kunlun_jax.models.kunlun.Kunlun`."""

    def __init__(
        self,
        schema: Schema,
        config: HSTUConfig,
        *,
        base_rate: tuple[float, ...],
        dense_moments: Moments | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(schema, config, dense_moments=dense_moments, rngs=rngs)
        rest = {"dtype": config.compute_dtype, "rngs": rngs}
        sizes = (self.context.tokens * config.dim, *config.candidate_hidden, config.dim)
        matching = self.event_names if config.tied_candidate else ()
        shared = {column for name in matching for column, _ in self.schema.matches(name)}
        self.tied = tuple(self.context.dense_tokens + column for column in sorted(shared))
        start = config.event_mlp_start if self.tied else 1.0
        self.candidate = MLP(sizes, activation=config.activation, last_scale=start, **rest)
        self.layers = nnx.List(
            HSTUBlock(
                config.dim,
                heads=config.heads,
                n=config.sequence_scale,
                biased=config.biased,
                positions=config.positions,
                buckets=config.time_buckets,
                dropout=config.block_dropout,
                start=config.branch_start,
                aligned=config.aligned,
                implementation=config.implementation,
                **rest,
            )
            for _ in range(config.layers)
        )
        self.head_context = config.head_context
        self.make_head(config.dim * (1 + self.context.tokens * config.head_context), config, base_rate, rngs)

    def __call__(
        self, batch: Batch, embedded: Embedded, *, dropout: nnx.Rngs | None = None
    ) -> Float[Array, "batch tasks"]:
        """Logits, float32 (float64 where that is the dtype of the computation); dropout acts only where given."""
        x, events, ages = self.inputs(batch, embedded)
        features = rearrange(x, "batch tokens dim -> batch (tokens dim)")
        candidate = self.candidate(features)[:, None, :]
        if self.tied:
            candidate += x[:, np.array(self.tied)].sum(1, keepdims=True) * len(self.tied) ** -0.5
        if events:
            history, age = merge(events, ages)
        else:
            history = no_rows(batch.size, candidate.shape[-1], candidate.dtype)
            age = jnp.zeros(0, batch.dense.dtype)
        # The candidate is as old as the request: its age is 0.
        age = append(history.replace(age[:, None]), jnp.zeros((batch.size, 1, 1), age.dtype)).values[:, 0]
        sequence = append(history, candidate)
        for layer in self.layers:
            sequence = sequence.replace(layer(sequence, age, dropout))
        found = last_rows(sequence, 1)[:, 0]
        if self.head_context:
            found = jnp.concatenate([found, features], axis=1)
        return self.logits(found, x, dropout)

    def middle_parts(self, lengths: Mapping[str, np.ndarray], batch: int) -> list[Part]:
        """Parameters and forward FLOPs per example of the candidate's MLP and the blocks."""
        read = [np.asarray(lengths[name], np.int64) for name in self.event_names]
        total = sum(read, np.zeros(batch, np.int64)) + 1
        parts = [part("candidate", self.candidate, self.candidate.flops())]
        return parts + [part(f"layer {i}", layer, layer.flops(total) / batch) for i, layer in enumerate(self.layers)]
