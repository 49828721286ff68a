"""The rows of `experiments.mfu`: models that lead from an InterFormer that pads to the whole of Kunlun."""

import dataclasses
from typing import Literal

from experiments.configs.kunlun import base, large, small
from kunlun_jax.data.pipeline import LoaderConfig
from kunlun_jax.data.schema import Schema
from kunlun_jax.data.sets.synthetic import SyntheticConfig, SyntheticSource
from kunlun_jax.models.config import EventConfig, KunlunConfig
from kunlun_jax.models.interformer import InterFormerConfig
from kunlun_jax.models.system import SystemConfig
from kunlun_jax.nn.attention import WHOLE_HISTORY
from kunlun_jax.training.config import TrainConfig

TINY = TrainConfig(
    loader=LoaderConfig(max_events=40),
    model=KunlunConfig(
        dim=8,
        layers=2,
        embedding_dim=4,
        summary_tokens=2,
        event_input="mlp",
        event=EventConfig(dim=8, heads=2, tokens=2, seeds=4, layers=2, window=2, ffn_width=4, kron_rank=1),
        experts=1,
        fm_tokens=2,
        linear_tokens=2,
        fm_rank=2,
        fm_hidden=(8,),
        head_hidden=(8,),
    ),
)
SIZES = {"base": base.CONFIG, "large": large.CONFIG, "small": small.CONFIG, "tiny": TINY}
"""Name -> preset of the whole of Kunlun; tiny is for tests."""
TITLES = {
    "interformer": "InterFormer, padded",
    "blocks": "Kunlun's blocks, padded",
    "packed": "packed, jagged attention",
    "gdpa": "jagged GDPA",
    "hsp": "HSP for PMA",
    "window": "window",
    "compskip": "CompSkip",
    "personalized": "event-level personalization",
}
"""Name of a row -> what it changes, for a table."""


def kunlun_of(size: str) -> KunlunConfig:
    """The model at the ladder's end, by the name in `SIZES`."""
    model = SIZES[size].model
    assert isinstance(model, KunlunConfig)
    return model


def synthetic_schema() -> Schema:
    """Features and event types of the synthetic world."""
    return SyntheticSource(SyntheticConfig()).schema


@dataclasses.dataclass(frozen=True)
class Rung:
    """One row of the ladder.

    Attributes:
      model: its config but for the implementation.
      rectangles: whether histories lie in rectangles.
      pads: which operators do: all of them, gdpa alone, or none.
    """

    model: SystemConfig
    rectangles: bool = False
    pads: Literal["all", "gdpa", "none"] = "none"


def ladder(config: KunlunConfig) -> dict[str, Rung]:
    """The rows that lead to `config`, whose `events` and `pattern` are the ladder's own."""
    event = config.event
    shared = {name: getattr(config, name) for name in ("dim", "embedding_dim", "skip_events", "event_input", "dtype")}
    interformer = InterFormerConfig(
        layers=config.layers,
        heads=event.heads,
        interaction_hidden=config.fm_hidden,
        head_hidden=config.head_hidden,
        **shared,
    )
    everything = dataclasses.replace(
        config,
        pooling="pma",
        pattern=("pool+ffn+attention",),
        event=dataclasses.replace(event, layers=config.layers, window=WHOLE_HISTORY),
        events={},
    )
    hsp = dataclasses.replace(everything, pooling="hsp")
    window = dataclasses.replace(hsp, event=dataclasses.replace(event, layers=config.layers))
    compskip = dataclasses.replace(window, pattern=("pool+ffn", "attention"))
    personalized = dataclasses.replace(compskip, event=event, events={"impression": event.halved()})
    return {
        "interformer": Rung(interformer, True, "all"),
        "blocks": Rung(everything, True, "all"),
        "packed": Rung(everything, pads="gdpa"),
        "gdpa": Rung(everything),
        "hsp": Rung(hsp),
        "window": Rung(window),
        "compskip": Rung(compskip),
        "personalized": Rung(personalized),
    }
