"""Kunlun, as the paper's figure has it: context tokens and event histories, layer by layer.

    X_sum     = WeightGeneration(X^l)
    S'_e      = PersonalizedFFN_e(S_e^l, X_sum)                            for each event type e
    H_e       = HSP_e(S'_e)  or the cached H_e
    X^{l+1}   = GlobalInteraction([X^l | H_1 | H_2 ...])
    S_e^{l+1} = WindowAttention_e(S'_e)
    logits    = MLP(flatten(X^1 .. X^L))

Source: Kunlun, Figure 1 (P), which shows one layer without CompSkip; that the head reads every layer is ours (O). Marks
of the parts in `kunlun_jax.nn` and `KunlunConfig`.
"""

from collections.abc import Iterator, Mapping

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from kunlun_jax.batch import Batch, Jagged
from kunlun_jax.data.dataset import Moments
from kunlun_jax.data.schema import Schema
from kunlun_jax.flops import Part, part
from kunlun_jax.models.config import KunlunConfig, layer_plan
from kunlun_jax.models.system import System
from kunlun_jax.nn.attention import WindowAttention
from kunlun_jax.nn.context import WeightGeneration
from kunlun_jax.nn.embedding import Embedded
from kunlun_jax.nn.ffn import PersonalizedFFN, PlainFFN
from kunlun_jax.nn.init import Linear, near_identity
from kunlun_jax.nn.interaction import GlobalInteraction
from kunlun_jax.nn.mlp import linear_flops
from kunlun_jax.nn.pooling import make_pooling


class KunlunLayer(nnx.Module):
    """One layer.

    Args:
      plan: event type -> what this layer runs on it, of "pool", "ffn" and "attention".
      tokens_in: context tokens that come in, n.
    """

    def __init__(
        self, plan: Mapping[str, frozenset[str]], tokens_in: int, config: KunlunConfig, *, dtype, rngs: nnx.Rngs
    ):
        rest = {"dtype": dtype, "rngs": rngs}
        # Only what reads it: a layer without a PersonalizedFFN whose interaction takes X itself has no use for X_sum.
        personalized = config.ffn_kind == "personalized" and any("ffn" in parts for parts in plan.values())
        reads_summary = config.interaction_context == "summary" or personalized
        self.weight_generation = (
            WeightGeneration(
                tokens_in,
                config.summary_tokens,
                config.dim,
                gate=config.summary_gate,
                residual=config.summary_residual,
                activation=config.activation,
                **rest,
            )
            if reads_summary
            else None
        )
        self.order, self.interaction_context = config.order, config.interaction_context
        self.pool, self.to_context, self.ffn, self.attention = nnx.Dict(), nnx.Dict(), nnx.Dict(), nnx.Dict()
        for name, parts in plan.items():
            event = config.for_event(name)
            operator = {"heads": event.heads, "implementation": config.implementation, **rest}
            if "pool" in parts:
                self.pool[name] = make_pooling(
                    config.pooling,
                    event.seeds,
                    event.tokens,
                    event.dim,
                    rank=event.kron_rank,
                    aligned=config.aligned,
                    counts=config.pool_counts,
                    ranks=config.pool_ranks,
                    **operator,
                )
                start = {"kernel_init": near_identity(0.1)} if config.aligned else {}
                self.to_context[name] = Linear(event.dim, config.dim, **start, **rest)
            if "ffn" in parts and config.ffn_kind == "plain":
                self.ffn[name] = PlainFFN(
                    event.dim,
                    width=event.ffn_width,
                    activation=config.ffn_activation,
                    values_start=config.ffn_values_start,
                    layer_scale=config.ffn_layer_scale,
                    **rest,
                )
            elif "ffn" in parts:
                scale = 1.0 / config.ffn_tau
                self.ffn[name] = PersonalizedFFN(
                    config.summary_tokens,
                    config.dim,
                    event.dim,
                    width=event.ffn_width,
                    activation=config.ffn_activation,
                    pre_scale=scale if config.ffn_scale == "pre" else 1.0,
                    post_scale=scale if config.ffn_scale == "post" else 1.0,
                    aligned=config.aligned,
                    free_values=config.ffn_free_values,
                    values_start=config.ffn_values_start,
                    layer_scale=config.ffn_layer_scale,
                    **operator,
                )
            if "attention" in parts:
                self.attention[name] = WindowAttention(event.dim, window=event.window, rote=config.rote, **operator)
        context = tokens_in if config.interaction_context == "context" else config.summary_tokens
        self.interaction = GlobalInteraction(
            context + sum(config.for_event(name).tokens for name in plan),
            config.dim,
            experts=config.experts,
            fm_tokens=config.fm_tokens,
            linear_tokens=config.linear_tokens,
            rank=config.fm_rank,
            products=config.fm_products,
            hidden=config.fm_hidden,
            activation=config.activation,
            unit_products=config.unit_products,
            token_norm=config.token_norm,
            **rest,
        )

    def __call__(
        self,
        x: Float[Array, "batch tokens dim"],
        events: dict[str, Jagged],
        history: dict[str, Float[Array, "batch _ dim"]],
        age: Mapping[str, Float[Array, " _"]],
    ) -> tuple[Float[Array, "batch out dim"], dict[str, Jagged], dict[str, Float[Array, "batch _ dim"]]]:
        """Next context tokens, next events, and the H of each event type, new where this layer pools."""
        x_sum = None if self.weight_generation is None else self.weight_generation(x)
        after, pooled = self.personalized(events, x_sum)
        history = history | {name: self.to_context[name](pool(pooled[name])) for name, pool in self.pool.items()}
        context = x if x_sum is None or self.interaction_context == "context" else x_sum
        x = self.interaction(jnp.concatenate([context, *(history[name] for name in events)], axis=1))
        for name, attention in self.attention.items():
            after = after | {name: after[name].replace(attention(after[name], age[name]))}
        return x, after, history

    def personalized(
        self, events: dict[str, Jagged], x_sum: Float[Array, "batch summary dim"] | None
    ) -> tuple[dict[str, Jagged], dict[str, Jagged]]:
        """S' of every event type, and what pooling reads: S' by Figure 1, else the events as they came."""
        after = events | {name: events[name].replace(ffn(events[name], x_sum)) for name, ffn in self.ffn.items()}
        return after, after if self.order == "ffn_first" else events

    def parts(self, prefix: str, lengths: Mapping[str, np.ndarray], batch: int) -> list[Part]:
        """Parameters and forward FLOPs per example of each block."""
        parts = []
        if self.weight_generation is not None:
            parts.append(part(f"{prefix} weight generation", self.weight_generation, self.weight_generation.flops()))
        for name, pool in self.pool.items():
            parts.append(part(f"{prefix} pooling {name}", pool, pool.flops(lengths[name]) / batch))
            to_context = self.to_context[name]
            flops = pool.tokens_out * linear_flops(to_context)
            parts.append(part(f"{prefix} to context {name}", to_context, flops))
        parts.append(part(f"{prefix} global interaction", self.interaction, self.interaction.flops()))
        for name, ffn in self.ffn.items():
            kind = "plain FFN" if isinstance(ffn, PlainFFN) else "personalized FFN"
            parts.append(part(f"{prefix} {kind} {name}", ffn, ffn.flops(lengths[name]) / batch))
        for name, attention in self.attention.items():
            flops = attention.flops(lengths[name]) / batch
            parts.append(part(f"{prefix} window attention {name}", attention, flops))
        return parts


class Kunlun(System):
    """The model without its tables, whose rows come in as `Embedded`: see `kunlun_jax.nn.embedding`.

    Args:
      schema: of the data; tables and inputs follow from it.
      config: sizes and readings.
      base_rate: click rate per task that a new model predicts before it has learned anything; its logit is the bias
        of the last layer.
      dense_moments: of the dense features (`kunlun_jax.data.dataset`), used if config.standardize; None: as they are.
      rngs: stream "params".

    Raises:
      ValueError: an event type has a name that `nnx.Dict` needs, or `base_rate` does not fit the tasks.
    """

    def __init__(
        self,
        schema: Schema,
        config: KunlunConfig,
        *,
        base_rate: tuple[float, ...],
        dense_moments: Moments | None = None,
        rngs: nnx.Rngs,
    ):
        widths = {event.name: config.for_event(event.name).dim for event in schema.events}
        super().__init__(schema, config, event_dims=widths, dense_moments=dense_moments, rngs=rngs)
        rest = {"dtype": config.compute_dtype, "rngs": rngs}
        plans = {event.name: layer_plan(config, config.for_event(event.name)) for event in self.schema.events}
        self.layers = nnx.List()
        tokens = self.context.tokens
        for index in range(config.layers):
            layer = KunlunLayer({name: plan[index] for name, plan in plans.items()}, tokens, config, **rest)
            tokens = layer.interaction.tokens_out
            self.layers.append(layer)
        self.head_reads = config.head_reads
        layers = config.layers if config.head_reads == "all" else 1
        self.make_head(layers * tokens * config.dim, config, base_rate, rngs)

    def __call__(
        self, batch: Batch, embedded: Embedded, *, dropout: nnx.Rngs | None = None
    ) -> Float[Array, "batch tasks"]:
        """Logits, float32 (float64 where that is the dtype of the computation).

        `embedded` holds the embeddings of `batch`; dropout acts only where `dropout` is given.
        """
        context, *layers = (x for x, _, _ in self.states(batch, embedded))
        x = jnp.concatenate(layers if self.head_reads == "all" else layers[-1:], axis=1)
        return self.logits(rearrange(x, "batch tokens dim -> batch (tokens dim)"), context, dropout)

    def states(
        self, batch: Batch, embedded: Embedded
    ) -> Iterator[tuple[Float[Array, "batch tokens dim"], dict[str, Jagged], dict[str, Float[Array, "batch _ dim"]]]]:
        """(X^l, S^l by event type, H by event type) for l = 0 .. layers: what goes into layer l, and what ends."""
        x, events, age = self.inputs(batch, embedded)
        history: dict[str, Float[Array, "batch _ dim"]] = {}
        yield x, events, history
        for layer in self.layers:
            x, events, history = layer(x, events, history, age)
            yield x, events, history

    def middle_parts(self, lengths: Mapping[str, np.ndarray], batch: int) -> list[Part]:
        """Parameters and forward FLOPs per example of each block of each layer."""
        return [p for i, layer in enumerate(self.layers) for p in layer.parts(f"layer {i}", lengths, batch)]
