"""InterFormer: non-sequence tokens and sequences, each refined by a summary of the other, layer by layer.

    cross arch:        X_sum = Gate(W X),   S_sum = Gate([S_CLS | S_PMA | S_recent])
    interaction arch:  X'    = X + MLP(Interaction([X | S_sum]))
    sequence arch:     S'    = MHA(S + PFFN(X_sum, S))
    logits = MLP([X_sum^L | S_sum^L]);   before the first layer X_sum is put in front of S as its CLS tokens

Source: InterFormer, arXiv 2411.09852 (P). Ours (O):
* One sequence for each event type, with a sequence arch and a summary of its own, X_sum for all. The paper joins k
  sequences on channels, which needs them to be of one length and clock; those of a schema are neither.
* The CLS tokens make sequences whose rows start anew (`nn.sequence.prepend`), so no history is ever empty; the newest
  tokens of one with fewer events than `recent_tokens` are CLS tokens.
* MHA has a norm before, unless it is left out, and a residual around it, as `nn.attention` has. PFFN and interaction
  have a residual, too, and maps of attention start near the identity. Without them nothing that candidate and events
  share survives a layer: PFFN multiplies all events by a new random matrix for each example (LOG.md).

MHA runs on `window_attention` with a window longer than any history, PMA on `seed_attention`, PFFN on `gdpa`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

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
from kunlun_jax.nn.attention import WHOLE_HISTORY, WindowAttention
from kunlun_jax.nn.cross import TokenInteraction
from kunlun_jax.nn.embedding import Embedded
from kunlun_jax.nn.gate import Gate
from kunlun_jax.nn.init import Linear
from kunlun_jax.nn.mlp import linear_flops
from kunlun_jax.nn.personalized_linear import PersonalizedLinear
from kunlun_jax.nn.pooling import SeedAttention
from kunlun_jax.nn.rotary import RoteConfig
from kunlun_jax.nn.sequence import first_rows, last_rows, prepend
from kunlun_jax.ranges import at_least


@dataclasses.dataclass(frozen=True)
class InterFormerConfig(SystemConfig):
    """InterFormer's sizes and readings."""

    layers: int = 3
    """L (P: 1 to 4)."""
    heads: int = 4
    """Attention heads, of MHA and PMA (P: 1, 2, 4 or 8)."""
    cls_tokens: int = 4
    """n_sum, tokens of X_sum, which are the CLS tokens (P: 4)."""
    pma_tokens: int = 2
    """Learned queries of PMA (P: 2)."""
    recent_tokens: int = 2
    """Newest tokens of a sequence in its summary (P: 2)."""
    gate: Literal["sigmoid", "tanh", "identity"] = "tanh"
    """sigma of Gate(Z) = sigma(Z * MLP(Z)) (P: one of the three, O: which)."""
    interaction: Literal["dot", "dcn", "dhen"] = "dhen"
    """Interaction: dot products, a cross network, or both (P: one of the three, O: which)."""
    cross_layers: int = 1
    """Layers of the cross network (O)."""
    cross_rank: int = 64
    """Rank of its maps; 0 is full matrices (O)."""
    interaction_hidden: tuple[int, ...] = (256,)
    """Hidden widths of the MLP after Interaction."""
    unit_products: bool = True
    """Whether dot products are of tokens scaled to length 1 (O)."""
    ffn_residual: bool = True
    """Whether PFFN has a residual (O)."""
    interaction_residual: bool = True
    """Whether the interaction has one (O; DHEN has it, in its own paper)."""
    aligned: bool = True
    """Whether queries, keys, values and output of MHA, and values and output of PMA, start near the identity, so that
    candidate and events that are alike find each other from the first step on (O)."""
    attention_norm: bool = True
    """Whether MHA has a LayerNorm before it (O); behind one, ids that were hardly trained are as loud as any."""
    rote: RoteConfig = RoteConfig(time=False)
    """Rotary embedding of MHA: positions (P)."""
    activation: str = "silu"
    """Activation of every plain MLP (P: Swish)."""

    RANGES: ClassVar = {
        "layers": at_least(1),
        "heads": at_least(1),
        "cls_tokens": at_least(1),
        "pma_tokens": at_least(1),
        "recent_tokens": at_least(1),
        "cross_layers": at_least(1),
        "cross_rank": at_least(0),
        "interaction_hidden": at_least(1),
    }

    def __post_init__(self):
        super().__post_init__()
        if self.dim % (2 * self.heads):
            raise ValueError(f"dim is {self.dim}, heads {self.heads}; dim / heads must be even")

    @property
    def summary_tokens(self) -> int:
        """Tokens of S_sum of one sequence."""
        return self.cls_tokens + self.pma_tokens + self.recent_tokens

    def build(self, schema: Schema, **rest: Any) -> "InterFormer":
        """A new InterFormer; arguments as `ModelConfig.build`."""
        return InterFormer(schema, self, **rest)


class CrossArch(nnx.Module):
    """X_sum of context tokens and S_sum of each sequence.

    Args:
      names: the event types.
      tokens: context tokens, n.
    """

    def __init__(self, names: tuple[str, ...], tokens: int, config: InterFormerConfig, *, dtype, rngs: nnx.Rngs):
        rest = {"dtype": dtype, "rngs": rngs}
        self.compress = Linear(tokens, config.cls_tokens, use_bias=False, **rest)
        self.gate = Gate(config.dim, kind=config.gate, **rest)
        self.pool, self.history_gate = nnx.Dict(), nnx.Dict()
        for name in names:
            self.pool[name] = SeedAttention(
                config.pma_tokens,
                config.dim,
                heads=config.heads,
                norm_seeds=False,
                aligned=config.aligned,
                implementation=config.implementation,
                **rest,
            )
            self.history_gate[name] = Gate(config.dim, kind=config.gate, **rest)
        self.cls_tokens, self.recent_tokens = config.cls_tokens, config.recent_tokens

    def of_context(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch cls dim"]:
        """X_sum."""
        z = self.compress(rearrange(x, "batch tokens dim -> batch dim tokens"))
        return self.gate(rearrange(z, "batch dim cls -> batch cls dim"))

    def of_sequences(self, events: Mapping[str, Jagged]) -> list[Float[Array, "batch summary dim"]]:
        """S_sum of each sequence, by name."""
        found = []
        for name, s in sorted(events.items()):
            cls, recent = first_rows(s, self.cls_tokens), last_rows(s, self.recent_tokens)
            found.append(self.history_gate[name](jnp.concatenate([cls, self.pool[name](s), recent], axis=1)))
        return found

    def parts(self, prefix: str, lengths: Mapping[str, np.ndarray], batch: int, dim: int) -> list[Part]:
        """Parameters and forward FLOPs per example; `lengths` of sequences with their CLS tokens."""
        compress, gate = dim * linear_flops(self.compress), self.cls_tokens * self.gate.flops()
        parts = [
            part(f"{prefix} context compression", self.compress, compress),
            part(f"{prefix} context gate", self.gate, gate),
        ]
        for name, pool in self.pool.items():
            gate = self.history_gate[name]
            tokens = self.cls_tokens + pool.tokens_out + self.recent_tokens
            parts.append(part(f"{prefix} PMA {name}", pool, pool.flops(lengths[name]) / batch))
            parts.append(part(f"{prefix} gate {name}", gate, tokens * gate.flops()))
        return parts


class InterFormerLayer(nnx.Module):
    """Cross arch, interaction arch and sequence arch; `tokens` context tokens come in and leave.

    Without event types there is no cross arch, since nothing would read it.
    """

    def __init__(self, names: tuple[str, ...], tokens: int, config: InterFormerConfig, *, dtype, rngs: nnx.Rngs):
        rest = {"dtype": dtype, "rngs": rngs}
        self.cross = CrossArch(names, tokens, config, **rest) if names else None
        self.interaction = TokenInteraction(
            tokens + len(names) * config.summary_tokens,
            tokens,
            config.dim,
            kind=config.interaction,
            layers=config.cross_layers,
            rank=config.cross_rank,
            hidden=config.interaction_hidden,
            activation=config.activation,
            unit_products=config.unit_products,
            **rest,
        )
        operator = {"implementation": config.implementation, **rest}
        self.ffn, self.attention = nnx.Dict(), nnx.Dict()
        for name in names:
            self.ffn[name] = PersonalizedLinear(config.cls_tokens, config.dim, **operator)
            self.attention[name] = WindowAttention(
                config.dim,
                heads=config.heads,
                window=WHOLE_HISTORY,
                rote=config.rote,
                aligned=config.aligned,
                norm=config.attention_norm,
                **operator,
            )
        self.ffn_residual, self.interaction_residual = config.ffn_residual, config.interaction_residual

    def interact(
        self, x: Float[Array, "batch tokens dim"], s_sum: list[Float[Array, "batch summary dim"]]
    ) -> Float[Array, "batch tokens dim"]:
        """X' of the interaction arch."""
        new = self.interaction(jnp.concatenate([x, *s_sum], axis=1))
        return x + new if self.interaction_residual else new

    def attend(
        self, events: Mapping[str, Jagged], x_sum: Float[Array, "batch cls dim"], age: Mapping[str, Float[Array, " _"]]
    ) -> dict[str, Jagged]:
        """S' of the sequence arch."""
        after = {}
        for name, s in events.items():
            new = self.ffn[name](s, x_sum)
            s = s.replace(s.values + new if self.ffn_residual else new)
            after[name] = s.replace(self.attention[name](s, age[name]))
        return after

    def parts(self, prefix: str, lengths: Mapping[str, np.ndarray], batch: int, dim: int) -> list[Part]:
        """Parameters and forward FLOPs per example; `lengths` of sequences with their CLS tokens."""
        parts = self.cross.parts(prefix, lengths, batch, dim) if self.cross is not None else []
        parts.append(part(f"{prefix} interaction", self.interaction, self.interaction.flops()))
        for kind, blocks in (("PFFN", self.ffn), ("attention", self.attention)):
            for name, block in blocks.items():
                parts.append(part(f"{prefix} {kind} {name}", block, block.flops(lengths[name]) / batch))
        return parts


class InterFormer(System):
    """The model without its tables; arguments and errors are those of `kunlun_jax.models.kunlun.Kunlun`."""

    def __init__(
        self,
        schema: Schema,
        config: InterFormerConfig,
        *,
        base_rate: tuple[float, ...],
        dense_moments: Moments | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(schema, config, dense_moments=dense_moments, rngs=rngs)
        rest = {"dtype": config.compute_dtype, "rngs": rngs}
        names, tokens = self.event_names, self.context.tokens
        self.layers = nnx.List(InterFormerLayer(names, tokens, config, **rest) for _ in range(config.layers))
        self.summary = CrossArch(names, tokens, config, **rest)
        self.dim, self.cls_tokens = config.dim, config.cls_tokens
        summary = config.cls_tokens + len(names) * config.summary_tokens
        self.make_head(summary * config.dim, config, base_rate, rngs)

    def __call__(
        self, batch: Batch, embedded: Embedded, *, dropout: nnx.Rngs | None = None
    ) -> Float[Array, "batch tasks"]:
        """Logits, float32 (float64 where that is the dtype of the computation); dropout acts only where given."""
        context, events, age = self.inputs(batch, embedded)
        x = context
        # CLS tokens are as old as the request.
        now = jnp.zeros((batch.size, self.cls_tokens, 1), jnp.float32)
        age = {
            name: prepend(now.astype(a.dtype), events[name].replace(a[:, None])).values[:, 0] for name, a in age.items()
        }
        for index, layer in enumerate(self.layers):
            s_sum = []
            if layer.cross is not None:
                x_sum = layer.cross.of_context(x)
                if index == 0:
                    events = {name: prepend(x_sum, s) for name, s in events.items()}
                s_sum = layer.cross.of_sequences(events)
                events = layer.attend(events, x_sum, age)
            x = layer.interact(x, s_sum)
        last = jnp.concatenate([self.summary.of_context(x), *self.summary.of_sequences(events)], axis=1)
        return self.logits(rearrange(last, "batch tokens dim -> batch (tokens dim)"), context, dropout)

    def middle_parts(self, lengths: Mapping[str, np.ndarray], batch: int) -> list[Part]:
        """Parameters and forward FLOPs per example of each block of each layer, and of the last summary."""
        lengths = {name: np.asarray(n) + self.cls_tokens for name, n in lengths.items()}
        parts = [p for i, layer in enumerate(self.layers) for p in layer.parts(f"layer {i}", lengths, batch, self.dim)]
        return parts + self.summary.parts("summary", lengths, batch, self.dim)
