"""`KunlunConfig`: every reading of the paper that is not certain, as a field with its mark.

Marks: P the paper's own words, M Meta's code, R two or more readers, r one reader, O our own choice.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kunlun_jax.data.schema import Schema
from kunlun_jax.models.system import SystemConfig, refuse_unknown
from kunlun_jax.nn.rotary import RoteConfig
from kunlun_jax.ranges import above, at_least, check

if TYPE_CHECKING:
    from kunlun_jax.models.kunlun import Kunlun

PARTS = ("pool", "ffn", "attention")


@dataclasses.dataclass(frozen=True)
class EventConfig:
    """Sizes for one event type: event-level personalization (R; numbers r)."""

    dim: int = 64
    """Width d_e of its event tokens, divisible by heads."""
    heads: int = 2
    """Attention heads, of pooling, FFN and window attention."""
    tokens: int = 8
    """Tokens its history is pooled into, n_tokens."""
    seeds: int = 16
    """Learned seeds of HSP, n_seeds; more than tokens."""
    layers: int = 3
    """Layers in which it takes part, at least 1 (skip_events leaves a type out); after them its last state is kept."""
    window: int = 50
    """Half-width of the self-attention window, in events, inclusive."""
    ffn_width: int = 64
    """F, the personalized hidden width (M: 128..256); with ffn_kind "plain" the hidden width of the shared weights."""
    kron_rank: int = 4
    """k, number of products in SumKronLinear (r: 8)."""

    RANGES: ClassVar = {
        "dim": at_least(1),
        "heads": at_least(1),
        "tokens": at_least(1),
        "seeds": at_least(1),
        "layers": at_least(1),
        "window": at_least(0),
        "ffn_width": at_least(1),
        "kron_rank": at_least(1),
    }

    def __post_init__(self):
        check(self, "model.event")

    def halved(self) -> "EventConfig":
        """What readers print for impressions beside clicks: half of every size, two layers (r)."""
        sizes = ("dim", "heads", "tokens", "seeds", "window", "ffn_width")
        return dataclasses.replace(self, layers=2, **{name: max(1, getattr(self, name) // 2) for name in sizes})


@dataclasses.dataclass(frozen=True)
class KunlunConfig(SystemConfig):
    """Kunlun's sizes and readings."""

    layers: int = 3
    """L."""
    order: Literal["ffn_first", "pool_first"] = "ffn_first"
    """Whether the PersonalizedFFN comes first and pooling and attention read its output (P, Figure 1), or pooling reads
    the input of the layer (r)."""
    interaction_context: Literal["context", "summary"] = "context"
    """What joins the H in GlobalInteraction: X^l (P, Figure 1) or X_sum (r)."""
    summary_tokens: int = 8
    """n_sum, number of tokens of X_sum (O)."""
    summary_gate: bool = False
    """Whether InterFormer's gate sigma(Z * MLP(Z)) follows WeightGeneration (r: no)."""
    summary_residual: bool = True
    """Whether WeightGeneration adds its input to its MLP's output (O)."""
    aligned: bool = True
    """Whether keys, HSP's values and outputs and the maps from H to the context start near the identity, so that
    candidate and history share coordinates where they meet (O)."""
    event: EventConfig = EventConfig()
    """Sizes for every event type that `events` does not name."""
    events: dict[str, EventConfig] = dataclasses.field(default_factory=dict)
    """Sizes for individual event types, by name."""
    rote: RoteConfig = dataclasses.field(default_factory=RoteConfig)
    """Rotary temporal embedding."""
    pattern: tuple[str, ...] = ("pool+ffn", "attention")
    """CompSkip (R): what layer l runs on histories, pattern[l % len]; ("pool+ffn+attention",) runs all in each."""
    final_pool: bool = True
    """Whether a type that stopped before the last layer is pooled once more from its last events (O)."""
    pooling: Literal["hsp", "seeds", "pma"] = "hsp"
    """Hierarchical seed pooling (R); as its ablations, the seeds without SumKronLinear, Z^T H_seed (O), or only learned
    queries (R)."""
    pool_counts: bool = False
    """Whether half of the pooling's heads are scaled by the logarithm of the history's length (O)."""
    pool_ranks: bool = True
    """Whether pooling's keys also encode how many events are newer, so that a seed can read only the newest (O)."""
    ffn_kind: Literal["personalized", "plain"] = "personalized"
    """GDPA, whose weights the context makes (R, M), or, as its ablation, a two-layer FFN shared by all examples (O), to
    which ffn_scale, ffn_tau and ffn_free_values do not apply."""
    ffn_activation: str = "gelu"
    """Pointwise function inside GDPA, or of the plain FFN (r: GELU; SiLU in HSTU)."""
    ffn_scale: Literal["post", "pre"] = "pre"
    """Where 1 / tau is applied: inside the activation (P, Figure 1) or after it (M)."""
    ffn_tau: float = 4.0
    """tau; in the figure it is the maximum sequence length (P), with which short training learns nothing (O)."""
    ffn_free_values: float = 0.25
    """Initial standard deviation of a part of V that does not depend on the example; 0: no such part (O)."""
    ffn_values_start: float = 0.25
    """Initial scale of the channel map of V, relative to LeCun's (O)."""
    ffn_layer_scale: float = 0.0
    """What a learned gain on the FFN's change of events starts at (LayerScale, O); 0: none, and the FFN's norms bring
    every change to 1 (M), which drowns events where embedding_scale is small."""
    experts: int = 2
    """M, number of Wukong experts (R; the number O)."""
    fm_tokens: int = 8
    """n_F of each expert."""
    linear_tokens: int = 8
    """n_L of each expert."""
    fm_rank: int = 8
    """k of each expert: columns of Y in X X^T Y."""
    fm_products: Literal["low_rank", "pairs"] = "low_rank"
    """What the deep net reads: X X^T Y under a LayerNorm (P), or the product of every two tokens, X X^T without what it
    has twice, without its diagonal and without a LayerNorm (O); fm_rank does not apply to that."""
    fm_hidden: tuple[int, ...] = (256,)
    """Hidden widths of the deep net after FM."""
    unit_products: bool = True
    """Whether tokens are scaled to length 1 before FM multiplies them (O)."""
    token_norm: bool = True
    """Whether a LayerNorm follows each Wukong layer, token by token (P); without it tokens keep their length, which is
    short for ids that were hardly trained (O)."""
    head_reads: Literal["all", "last"] = "all"
    """Whether the head reads X of every layer (O) or of the last one (r)."""

    RANGES: ClassVar = {
        "layers": at_least(1),
        "summary_tokens": at_least(1),
        "ffn_tau": above(0),
        "ffn_free_values": at_least(0),
        "ffn_values_start": at_least(0),
        "ffn_layer_scale": at_least(0),
        "experts": at_least(1),
        "fm_tokens": at_least(1),
        "linear_tokens": at_least(1),
        "fm_rank": at_least(1),
        "fm_hidden": at_least(1),
    }

    def __post_init__(self):
        super().__post_init__()
        for index, layer in enumerate(self.pattern):
            if layer and not set(layer.split("+")) <= set(PARTS):
                raise ValueError(f"pattern[{index}] is {layer!r}; join {list(PARTS)} with '+', or leave it empty")
        if not self.pattern or "pool" not in self.pattern[0]:
            raise ValueError(f"pattern is {self.pattern!r}; its first layer must have 'pool', else no H to start from")
        for name, event in {"event": self.event, **self.events}.items():
            if event.dim % event.heads or event.dim // event.heads % 2:
                raise ValueError(f"{name}.dim is {event.dim}, heads {event.heads}; dim / heads must be even")

    def for_event(self, name: str) -> EventConfig:
        """What the event type `name` gets."""
        return self.events.get(name, self.event)

    def event_types(self, available: tuple[str, ...]) -> tuple[str, ...]:
        """The event types the model reads, of those a schema has; ValueError for a name the schema lacks."""
        refuse_unknown("events", set(self.events), available)
        return super().event_types(available)

    def build(self, schema: Schema, **rest: Any) -> "Kunlun":
        """A new Kunlun; arguments as `ModelConfig.build`."""
        from kunlun_jax.models.kunlun import Kunlun  # which reads this file; separate, so that it is only the figure

        return Kunlun(schema, self, **rest)


def layer_plan(config: KunlunConfig, event: EventConfig) -> tuple[frozenset[str], ...]:
    """What each layer runs on one event type, of "pool", "ffn" and "attention".

    Follows `pattern` for the type's own layers; pools once more after them if `final_pool` and its events changed
    since; and drops every change of events that no pooling reads afterwards. With `order` "ffn_first" the FFN of a
    layer is read by the pooling of the same layer.
    """
    before_pool = {"ffn"} if config.order == "ffn_first" else set()
    plan = []
    changed = False
    for layer in range(config.layers):
        parts = set(config.pattern[layer % len(config.pattern)].split("+")) - {""} if layer < event.layers else set()
        if layer == event.layers and changed and config.final_pool:
            parts = {"pool"}
        if "pool" in parts:
            changed = bool(parts - before_pool - {"pool"})
        else:
            changed = changed or bool(parts)
        plan.append(parts)
    read_later = False
    for parts in reversed(plan):
        if not read_later:
            parts -= {"ffn", "attention"} - (before_pool if "pool" in parts else set())
        read_later = read_later or "pool" in parts
    return tuple(frozenset(parts) for parts in plan)
