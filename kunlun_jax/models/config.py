"""`KunlunConfig`: every reading of the paper that is not certain, as a field with its mark.

Marks: P the paper's own words, M Meta's code, R two or more readers, r one reader, O our own choice.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from kunlun_jax.nn.rotary import RoteConfig

PARTS = ("pool", "ffn", "attention")


@dataclasses.dataclass(frozen=True)
class EventConfig:
    """What one event type gets: event-level personalization (R; numbers r)."""

    dim: int = 64
    """Width d_e of its event tokens, divisible by heads."""
    heads: int = 2
    """Attention heads, of pooling, FFN and window attention."""
    tokens: int = 8
    """Tokens that its history becomes, n_tokens."""
    seeds: int = 16
    """Learned seeds of HSP, n_seeds; more than tokens."""
    layers: int = 3
    """Layers in which it takes part; afterwards its last state stays."""
    window: int = 50
    """Half window of self-attention, in events, inclusive."""
    ffn_width: int = 64
    """F, the personalized hidden width (M: 128..256)."""
    kron_rank: int = 4
    """k, products in SumKronLinear (r: 8)."""


@dataclasses.dataclass(frozen=True)
class KunlunConfig:
    """Kunlun's sizes and readings."""

    dim: int = 64
    """Width d of context tokens."""
    layers: int = 3
    """L."""
    embedding_dim: int = 32
    """Width of every embedding table; each context feature maps it to dim where they differ (O)."""
    embedding_scale: float = 0.05
    """Standard deviation of new embeddings (O)."""
    dense_tokens: int = 1
    """Tokens that the dense features make together (P: 1)."""
    standardize: bool = True
    """Whether dense features are taken less their mean, by their standard deviation over training rows (O)."""
    summary_tokens: int = 8
    """n_sum, tokens of X_sum (O)."""
    summary_gate: bool = False
    """Whether InterFormer's gate sigma(Z * MLP(Z)) follows WeightGeneration (r: no)."""
    event: EventConfig = EventConfig()
    """What an event type gets that `events` does not name."""
    events: dict[str, EventConfig] = dataclasses.field(default_factory=dict)
    """What single event types get, by name."""
    skip_events: tuple[str, ...] = ()
    """Event types to leave out; "*" leaves out all, which is the model without its sequences."""
    event_input: Literal["masknet", "mlp"] = "masknet"
    """From event fields to tokens: MaskNet (P, InterFormer) or a two-layer MLP (r)."""
    age_feature: bool = True
    """Whether log(1 + age) of an event is one of its inputs (O)."""
    rote: RoteConfig = dataclasses.field(default_factory=RoteConfig)
    """Rotary temporal embedding."""
    pattern: tuple[str, ...] = ("pool+ffn", "attention")
    """CompSkip (R): what layer l runs on histories, pattern[l % len]; ("pool+ffn+attention",) runs all in each."""
    final_pool: bool = True
    """Whether a type that stopped before the last layer is pooled once more from its last events (O)."""
    pooling: Literal["hsp", "pma"] = "hsp"
    """Hierarchical seed pooling (R), or learned queries alone, as its ablation."""
    ffn_activation: str = "gelu"
    """Pointwise function inside GDPA (r: GELU; SiLU in HSTU)."""
    ffn_scale: Literal["post", "pre"] = "post"
    """Where 1 / tau stands: behind the activation (M, O) or inside it (r)."""
    ffn_tau: float = 1000.0
    """tau, the maximum sequence length (R)."""
    experts: int = 2
    """M, Wukong experts (R; number O)."""
    fm_tokens: int = 8
    """n_F of each expert."""
    linear_tokens: int = 8
    """n_L of each expert."""
    fm_rank: int = 8
    """k of each expert: columns of Y in X X^T Y."""
    fm_hidden: tuple[int, ...] = (256,)
    """Hidden widths of the deep net behind FM."""
    head_hidden: tuple[int, ...] = (128,)
    """Hidden widths of the MLP that ends in the logits."""
    activation: str = "gelu"
    """Activation of every plain MLP (O)."""
    dropout: float = 0.0
    """Dropout rate on the head's input (O)."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Of the computation; parameters are float32. auto: bfloat16 on a GPU, float32 elsewhere. float64 is for comparing
    implementations: it needs jax.enable_x64, and parameters, tables and batches that are cast to it."""
    implementation: str | None = None
    """Of the jagged operators; None picks by device and logs which."""

    def __post_init__(self):
        for index, layer in enumerate(self.pattern):
            if layer and not set(layer.split("+")) <= set(PARTS):
                raise ValueError(f"pattern[{index}] is {layer!r}; join {list(PARTS)} with '+', or leave it empty")
        if not self.pattern or "pool" not in self.pattern[0]:
            raise ValueError(f"pattern is {self.pattern!r}; its first layer must have 'pool', else no H to start from")
        for name, event in {"event": self.event, **self.events}.items():
            if event.dim % event.heads or event.dim // event.heads % 2:
                raise ValueError(f"{name}.dim is {event.dim}, heads {event.heads}; a head needs an even whole width")
            if event.layers < 1:
                raise ValueError(f"{name}.layers is {event.layers}; it must be at least 1, or the type in skip_events")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must lie in [0, 1)")

    @property
    def compute_dtype(self):
        """The dtype that `dtype` means on this machine."""
        if self.dtype == "auto":
            return jnp.bfloat16 if jax.default_backend() == "gpu" else jnp.float32
        if self.dtype == "float64" and not jax.config.jax_enable_x64:
            raise ValueError("model.dtype is 'float64', in which JAX computes only under jax.enable_x64(True)")
        return jnp.dtype(self.dtype)

    def for_event(self, name: str) -> EventConfig:
        """What the event type `name` gets."""
        return self.events.get(name, self.event)

    def event_types(self, available: tuple[str, ...]) -> tuple[str, ...]:
        """The event types the model reads, of those a schema has; ValueError for a name the schema lacks."""
        for field, names in (("events", tuple(self.events)), ("skip_events", self.skip_events)):
            unknown = sorted(set(names) - set(available) - ({"*"} if field == "skip_events" else set()))
            if unknown:
                raise ValueError(f"model.{field} names {unknown}; the schema's event types are {list(available)}")
        return () if "*" in self.skip_events else tuple(n for n in available if n not in self.skip_events)


def layer_plan(config: KunlunConfig, event: EventConfig) -> tuple[frozenset[str], ...]:
    """What each layer runs on one event type, of "pool", "ffn" and "attention".

    Follows `pattern` for the type's own layers; pools once more behind them if `final_pool` and its events changed
    since; and drops every change of events that no later layer pools, since nothing would read it.
    """
    plan = []
    changed = False
    for layer in range(config.layers):
        parts = set(config.pattern[layer % len(config.pattern)].split("+")) - {""} if layer < event.layers else set()
        if layer == event.layers and changed and config.final_pool:
            parts = {"pool"}
        if "pool" in parts:
            changed = False
        changed = changed or bool(parts - {"pool"})
        plan.append(parts)
    read_later = False
    for parts in reversed(plan):
        if not read_later:
            parts -= {"ffn", "attention"}
        read_later = read_later or "pool" in parts
    return tuple(frozenset(parts) for parts in plan)
