"""What every system shares: one schema, one batch, one input, one head, so that only their middles differ.

    X   = context tokens                                  S_e = event tokens of each event type e
    logits = MLP(what the system makes of X and the S_e) [+ W X]; the last bias starts at the logit of the base rate

Source: Kunlun and InterFormer (P) for tokens; the same input and head for every system are ours (O), so that a
difference between two of them comes from what stands between.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from kunlun_jax.batch import Batch, Jagged
from kunlun_jax.data.dataset import Moments
from kunlun_jax.data.schema import EventType, Schema
from kunlun_jax.flops import Part, part
from kunlun_jax.models.base import ModelConfig
from kunlun_jax.nn.context import ContextTokens
from kunlun_jax.nn.embedding import Embedded
from kunlun_jax.nn.event_input import EventInput, unit_rank
from kunlun_jax.nn.init import Linear
from kunlun_jax.nn.mlp import MLP, linear_flops
from kunlun_jax.ranges import at_least, check, rate
from pallas_kernels.dispatch import accumulator
from pallas_kernels.jagged import zero_padding


@dataclasses.dataclass(frozen=True)
class SystemConfig(ModelConfig):
    """Sizes and readings common to every system."""

    dim: int = 64
    """Width d of context tokens."""
    embedding_dim: int = 32
    """Width of every embedding table; each context feature maps it to dim where they differ (O)."""
    embedding_scale: float = 0.1
    """Standard deviation of new embeddings (O). Where most ids are rare, as in MovieLens-1M, those that were hardly
    trained are better short: .01 gained every system that was tried (LOG.md)."""
    dense_tokens: int = 1
    """Tokens made from all dense features together (P: 1)."""
    standardize: bool = True
    """Whether dense features are standardized by their mean and standard deviation over the training rows (O)."""
    skip_events: tuple[str, ...] = ()
    """Event types to leave out; "*" leaves out all of them: the model without histories."""
    event_input: Literal["masknet", "mlp"] = "masknet"
    """How event fields become tokens: MaskNet (P, InterFormer) or a two-layer MLP (r)."""
    age_feature: bool = True
    """Whether an event's log(1 + age) is one of its inputs (O)."""
    rank_feature: bool = True
    """Whether the logarithm of the number of newer events of its type is one of an event's inputs (O)."""
    tied_events: bool = True
    """Whether event fields also reach the event's token through the map of the context feature whose table they share,
    so that candidate and history meet in the same coordinates (O)."""
    event_mlp_start: float = 0.1
    """Initial scale of the last layer of the events' MLP, relative to LeCun's (O)."""
    history_lengths: bool = True
    """Whether the number of events of each type is a dense feature; pooling by softmax forgets it (O)."""
    head_hidden: tuple[int, ...] = (128,)
    """Hidden widths of the MLP that makes the logits."""
    activation: str = "gelu"
    """Activation of every plain MLP (O)."""
    wide: bool = False
    """Whether a linear map of the context tokens, initially zero, is added to the logits (O, as in Wide & Deep)."""
    dropout: float = 0.0
    """Dropout rate on the head's input (O)."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Precision of the computation; parameters are float32. auto: bfloat16 on a GPU, float32 elsewhere. float64 is for
    comparing implementations: it needs jax.enable_x64, and parameters, tables and batches cast to it."""
    implementation: str | None = None
    """Backend of the jagged operators; None picks one for the device and logs which."""

    RANGES: ClassVar = {
        "dim": at_least(1),
        "embedding_dim": at_least(1),
        "embedding_scale": at_least(0),
        "dense_tokens": at_least(1),
        "event_mlp_start": at_least(0),
        "head_hidden": at_least(1),
        "dropout": rate(),
    }

    def __post_init__(self):
        check(self, "model")

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The dtype that `dtype` means on this machine."""
        if self.dtype == "auto":
            return jnp.dtype(jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32)
        if self.dtype == "float64" and not jax.config.jax_enable_x64:
            raise ValueError("model.dtype is 'float64', in which JAX computes only under jax.enable_x64(True)")
        return jnp.dtype(self.dtype)

    def event_types(self, available: tuple[str, ...]) -> tuple[str, ...]:
        """The event types the model reads, of those a schema has; ValueError for a name the schema lacks."""
        refuse_unknown("skip_events", set(self.skip_events) - {"*"}, available)
        return () if "*" in self.skip_events else tuple(n for n in available if n not in self.skip_events)


def refuse_unknown(field: str, names: set[str], available: tuple[str, ...]) -> None:
    """ValueError if a config field names event types that the schema lacks."""
    unknown = sorted(names - set(available))
    if unknown:
        raise ValueError(f"model.{field} names {unknown}; the schema's event types are {list(available)}")


def shared_features(event: EventType, tables: list[str]) -> tuple[tuple[int, int], ...]:
    """(field, feature) numbers where a field of `event` reads the table of a context feature, the first that does."""
    return tuple(
        (number, tables.index(field.table_name))
        for number, field in enumerate(event.categorical)
        if field.table_name in tables
    )


class System(nnx.Module):
    """Input and head of a system, which is a subclass: it has ``middle_parts`` and ``__call__``.

    The model is without its tables, whose rows come in as `Embedded`: see `kunlun_jax.nn.embedding`.

    Args:
      schema: of the data; tables and inputs follow from it.
      config: sizes and readings.
      event_dims: width of the tokens of each event type that the config reads.
      dense_moments: of the dense features (`kunlun_jax.data.dataset`), used if config.standardize; None: as they are.
      rngs: stream "params".

    Raises:
      ValueError: an event type has a name that `nnx.Dict` needs, or the config names one that does not exist.
    """

    def __init__(
        self,
        schema: Schema,
        config: SystemConfig,
        *,
        event_dims: Mapping[str, int] | None = None,
        dense_moments: Moments | None,
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
        tables = [feature.table_name for feature in (*schema.categorical, *schema.multi_valued)]
        self.embedding_dim, self.embedding_scale = config.embedding_dim, config.embedding_scale
        self.rank_feature = config.rank_feature
        self.context = ContextTokens(
            schema,
            config.embedding_dim,
            config.dim,
            dense_tokens=config.dense_tokens,
            dense_moments=dense_moments if config.standardize else None,
            lengths=tuple(sorted(types)) if config.history_lengths else (),
            **rest,
        )
        self.event_input = nnx.Dict()
        for event in self.schema.events:
            self.event_input[event.name] = EventInput(
                len(event.categorical),
                len(event.dense) + config.rank_feature,
                config.embedding_dim,
                config.dim if event_dims is None else event_dims[event.name],
                kind=config.event_input,
                age=config.age_feature,
                activation=config.activation,
                tied=shared_features(event, tables) if config.tied_events else (),
                mlp_start=config.event_mlp_start,
                **rest,
            )

    @property
    def event_names(self) -> tuple[str, ...]:
        """The event types that the model reads, by name: the order in which their tokens stand.

        A module's dict comes back from nnx.split and nnx.merge sorted, and the order of tokens must not depend on
        whether the model went through them.
        """
        return tuple(sorted(self.event_input))

    def make_head(self, inputs: int, config: SystemConfig, base_rate: tuple[float, ...], rngs: nnx.Rngs) -> None:
        """What makes the logits: dropout and an MLP on `inputs` channels, with config.wide a linear map of the context.

        A new one predicts about `base_rate`.

        Raises:
          ValueError: `base_rate` does not hold one rate inside (0, 1) for each task.
        """
        self.dropout = nnx.Dropout(config.dropout)
        tasks = self.schema.tasks
        sizes = (inputs, *config.head_hidden, len(tasks))
        self.head = MLP(sizes, activation=config.activation, dtype=config.compute_dtype, rngs=rngs)
        rate = np.asarray(base_rate, np.float64)
        if rate.shape != (len(tasks),) or not np.all((rate > 0) & (rate < 1)):
            raise ValueError(f"base_rate is {base_rate}; it must hold one rate inside (0, 1) for each of {tasks}")
        self.head.layers[-1].bias = nnx.Param(jnp.asarray(np.log(rate / (1 - rate)), jnp.float32))
        self.wide = (
            Linear(
                self.context.tokens * config.dim,
                len(tasks),
                use_bias=False,
                kernel_init=nnx.initializers.zeros,
                dtype=config.compute_dtype,
                rngs=rngs,
            )
            if config.wide
            else None
        )

    def inputs(
        self, batch: Batch, embedded: Embedded
    ) -> tuple[Float[Array, "batch tokens dim"], dict[str, Jagged], dict[str, Float[Array, " _"]]]:
        """Context tokens; event tokens by type; ages of events in seconds, zero where there is no event."""
        x = self.context(batch, embedded)
        age, events = {}, {}
        for name in self.event_names:
            packed = batch.events[name]
            dense = self.event_dense(packed)
            age[name] = zero_padding(packed.values["age"], packed.mask())
            maps = None if self.context.project is None else self.context.project[...]
            events[name] = packed.replace(self.event_input[name](embedded.events[name], dense, age[name], maps))
        return x, events, age

    def event_dense(self, packed: Jagged) -> Float[Array, "rows dense"]:
        """The dense fields of the events of one type, and their rank if it is an input; zeros where there is no event.

        Rows that hold no event may hold anything. The operators leave them out, but a NaN times the zero that then
        comes back as their gradient would be a NaN in the gradient of every map before them.
        """
        dense = zero_padding(packed.values["dense"], packed.mask())
        if not self.rank_feature:
            return dense
        rank = zero_padding(unit_rank(packed, dense.dtype), packed.mask())
        return jnp.concatenate([dense, rank[:, None]], axis=1)

    def pairs(
        self, name: str, embedded: Embedded
    ) -> tuple[Float[Array, "batch pairs embedding"], Float[Array, "rows pairs embedding"]]:
        """Embeddings of candidate and events of a type where they share a table (`Schema.matches`), field by field."""
        found = self.schema.matches(name)
        context, event = (np.array([pair[side] for pair in found], np.int32) for side in (0, 1))
        return embedded.categorical[:, context], embedded.events[name][:, event]

    def logits(
        self,
        channels: Float[Array, "batch channels"],
        context: Float[Array, "batch tokens dim"],
        dropout: nnx.Rngs | None,
    ) -> Float[Array, "batch tasks"]:
        """The head's output, float32 (float64 where that is the dtype of the computation).

        Args:
          channels: what the system made of its inputs.
          context: the context tokens as they came in.
          dropout: it acts only where this is given.
        """
        logits = self.head(self.dropout(channels, deterministic=dropout is None, rngs=dropout))
        if self.wide is not None:
            logits += self.wide(rearrange(context, "batch tokens dim -> batch (tokens dim)"))
        return logits.astype(accumulator(logits.dtype))

    def middle_parts(self, lengths: Mapping[str, np.ndarray], batch: int) -> list[Part]:
        """Parameters and forward FLOPs per example of what stands between input and head."""
        raise NotImplementedError

    def parts(self, lengths: Mapping[str, np.ndarray]) -> list[Part]:
        """Parameters and forward FLOPs per example by block, for examples with these history lengths by type."""
        batch = len(next(iter(lengths.values()))) if lengths else 1
        rows = sum(table.rows for table in self.schema.tables.values())
        parts = [
            Part("tables", rows * self.embedding_dim, 0),
            part("context tokens", self.context, self.context.flops()),
        ]
        for name, to_token in self.event_input.items():
            width = None if self.context.project is None else self.context.project.shape[-1]
            per_event = to_token.flops(width)
            parts.append(part(f"event input {name}", to_token, per_event * lengths[name].sum() / batch))
        parts += [*self.middle_parts(lengths, batch), part("head", self.head, self.head.flops())]
        return parts if self.wide is None else [*parts, part("wide", self.wide, linear_flops(self.wide))]
