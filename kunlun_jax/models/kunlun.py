"""Kunlun, as the paper's figure has it: context tokens and event histories, layer by layer.

    X_sum   = WeightGeneration(X)
    H_e     = HSP_e(S_e)  or the cached H_e                                for each event type e
    X'      = GlobalInteraction([X_sum | H_1 | H_2 ...])
    S_e'    = PersonalizedFFN_e(S_e, X_sum)  and / or  WindowAttention_e(S_e)
    logits  = MLP(flatten(X^L))

Source: Kunlun (r for the order of blocks; marks of the parts in `kunlun_jax.nn` and `KunlunConfig`).
"""

import dataclasses
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
from kunlun_jax.nn.attention import WindowAttention
from kunlun_jax.nn.context import ContextTokens, WeightGeneration
from kunlun_jax.nn.embedding import Embedded
from kunlun_jax.nn.event_input import EventInput
from kunlun_jax.nn.ffn import PersonalizedFFN
from kunlun_jax.nn.interaction import GlobalInteraction
from kunlun_jax.nn.mlp import MLP, linear_flops
from kunlun_jax.nn.pooling import make_pooling
from pallas_kernels.dispatch import accumulator
from pallas_kernels.jagged import zero_padding


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
        self.weight_generation = WeightGeneration(
            tokens_in, config.summary_tokens, config.dim, gate=config.summary_gate, activation=config.activation, **rest
        )
        self.pool, self.to_context, self.ffn, self.attention = nnx.Dict(), nnx.Dict(), nnx.Dict(), nnx.Dict()
        for name, parts in plan.items():
            event = config.for_event(name)
            operator = {"heads": event.heads, "implementation": config.implementation, **rest}
            if "pool" in parts:
                self.pool[name] = make_pooling(
                    config.pooling, event.seeds, event.tokens, event.dim, rank=event.kron_rank, **operator
                )
                self.to_context[name] = nnx.Linear(event.dim, config.dim, **rest)
            if "ffn" in parts:
                scale = 1.0 / config.ffn_tau
                self.ffn[name] = PersonalizedFFN(
                    config.summary_tokens,
                    config.dim,
                    event.dim,
                    width=event.ffn_width,
                    activation=config.ffn_activation,
                    pre_scale=scale if config.ffn_scale == "pre" else 1.0,
                    post_scale=scale if config.ffn_scale == "post" else 1.0,
                    **operator,
                )
            if "attention" in parts:
                self.attention[name] = WindowAttention(event.dim, window=event.window, rote=config.rote, **operator)
        self.interaction = GlobalInteraction(
            config.summary_tokens + sum(config.for_event(name).tokens for name in plan),
            config.dim,
            experts=config.experts,
            fm_tokens=config.fm_tokens,
            linear_tokens=config.linear_tokens,
            rank=config.fm_rank,
            hidden=config.fm_hidden,
            activation=config.activation,
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
        x_sum = self.weight_generation(x)
        history = history | {name: self.to_context[name](pool(events[name])) for name, pool in self.pool.items()}
        x = self.interaction(jnp.concatenate([x_sum, *(history[name] for name in events)], axis=1))
        for name, ffn in self.ffn.items():
            events = events | {name: events[name].replace(ffn(events[name], x_sum))}
        for name, attention in self.attention.items():
            events = events | {name: events[name].replace(attention(events[name], age[name]))}
        return x, events, history

    def parts(self, prefix: str, lengths: Mapping[str, np.ndarray], batch: int) -> list[Part]:
        """Parameters and forward FLOPs per example of each block."""
        parts = [part(f"{prefix} weight generation", self.weight_generation, self.weight_generation.flops())]
        for name, pool in self.pool.items():
            parts.append(part(f"{prefix} pooling {name}", pool, pool.flops(lengths[name]) / batch))
            to_context = self.to_context[name]
            flops = pool.tokens_out * linear_flops(to_context)
            parts.append(part(f"{prefix} to context {name}", to_context, flops))
        parts.append(part(f"{prefix} global interaction", self.interaction, self.interaction.flops()))
        for kind, blocks in (("personalized FFN", self.ffn), ("window attention", self.attention)):
            for name, block in blocks.items():
                parts.append(part(f"{prefix} {kind} {name}", block, block.flops(lengths[name]) / batch))
        return parts


class Kunlun(nnx.Module):
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
        types = config.event_types(tuple(event.name for event in schema.events))
        # Modules by event type are attributes of nnx.Dict, so one called "items" would stand in for its method.
        taken = [name for name in types if hasattr(nnx.Dict, name)]
        if taken:
            raise ValueError(
                f"schema {schema.name!r} has event types {taken}, names that flax.nnx.Dict needs itself; rename them, "
                f"e.g. {taken[0]!r} to '{taken[0]}_event'"
            )
        self.schema = dataclasses.replace(schema, events=tuple(schema.event(name) for name in types))
        rest = {"dtype": config.compute_dtype, "rngs": rngs}
        self.embedding_dim, self.embedding_scale = config.embedding_dim, config.embedding_scale
        self.context = ContextTokens(
            schema,
            config.embedding_dim,
            config.dim,
            dense_tokens=config.dense_tokens,
            dense_moments=dense_moments if config.standardize else None,
            **rest,
        )
        self.event_input = nnx.Dict()
        for event in self.schema.events:
            self.event_input[event.name] = EventInput(
                len(event.categorical),
                len(event.dense),
                config.embedding_dim,
                config.for_event(event.name).dim,
                kind=config.event_input,
                age=config.age_feature,
                activation=config.activation,
                **rest,
            )
        plans = {name: layer_plan(config, config.for_event(name)) for name in types}
        self.layers = nnx.List()
        tokens = self.context.tokens
        for index in range(config.layers):
            layer = KunlunLayer({name: plan[index] for name, plan in plans.items()}, tokens, config, **rest)
            tokens = layer.interaction.tokens_out
            self.layers.append(layer)
        self.dropout = nnx.Dropout(config.dropout)
        sizes = (tokens * config.dim, *config.head_hidden, len(schema.tasks))
        self.head = MLP(sizes, activation=config.activation, **rest)
        rate = np.asarray(base_rate, np.float64)
        if rate.shape != (len(schema.tasks),) or not np.all((rate > 0) & (rate < 1)):
            raise ValueError(
                f"base_rate is {base_rate}; it must hold one rate inside (0, 1) for each of {schema.tasks}"
            )
        self.head.layers[-1].bias = nnx.Param(jnp.asarray(np.log(rate / (1 - rate)), jnp.float32))

    def __call__(
        self, batch: Batch, embedded: Embedded, *, dropout: nnx.Rngs | None = None
    ) -> Float[Array, "batch tasks"]:
        """Logits, float32 (float64 where that is the dtype of the computation).

        `embedded` holds the embeddings of `batch`; dropout acts only where `dropout` is given.
        """
        *_, (x, _, _) = self.states(batch, embedded)
        x = rearrange(x, "batch tokens dim -> batch (tokens dim)")
        x = self.dropout(x, deterministic=dropout is None, rngs=dropout)
        logits = self.head(x)
        return logits.astype(accumulator(logits.dtype))

    def states(
        self, batch: Batch, embedded: Embedded
    ) -> Iterator[tuple[Float[Array, "batch tokens dim"], dict[str, Jagged], dict[str, Float[Array, "batch _ dim"]]]]:
        """(X^l, S^l by event type, H by event type) for l = 0 .. layers: what goes into layer l, and what ends."""
        x = self.context(batch, embedded)
        age, events = {}, {}
        # By name: a module's dict comes back from nnx.split and nnx.merge sorted, and the order of tokens must not
        # depend on whether the model went through them.
        for name, to_token in sorted(self.event_input.items()):
            packed = batch.events[name]
            # Rows that hold no event may hold anything. The operators leave them out, but a NaN times the zero that
            # then comes back as their gradient would be a NaN in the gradient of every map before them.
            dense, age[name] = (zero_padding(packed.values[key], packed.mask()) for key in ("dense", "age"))
            events[name] = packed.replace(to_token(embedded.events[name], dense, age[name]))
        history: dict[str, Float[Array, "batch _ dim"]] = {}
        yield x, events, history
        for layer in self.layers:
            x, events, history = layer(x, events, history, age)
            yield x, events, history

    def parts(self, lengths: Mapping[str, np.ndarray]) -> list[Part]:
        """Parameters and forward FLOPs per example by block, for examples with these history lengths by type."""
        batch = len(next(iter(lengths.values()))) if lengths else 1
        rows = sum(table.rows for table in self.schema.tables.values())
        parts = [
            Part("tables", rows * self.embedding_dim, 0),
            part("context tokens", self.context, self.context.flops()),
        ]
        for name, to_token in self.event_input.items():
            parts.append(part(f"event input {name}", to_token, to_token.flops() * lengths[name].sum() / batch))
        for index, layer in enumerate(self.layers):
            parts += layer.parts(f"layer {index}", lengths, batch)
        return [*parts, part("head", self.head, self.head.flops())]
