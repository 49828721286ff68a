"""Systems learn that events match the candidate, in the little world of `tests.training.match_world`."""

import dataclasses

import pytest

from experiments.configs import PRESETS
from kunlun_jax.models.base import ModelConfig
from tests.training.match_world import STEPS, distance, floor_and_blind

NEAR = 0.05
"""NE above the floor within which a system has found the matches. Two seeds of each end at .02 or below; one who knows
the lengths of the histories alone cannot come nearer than .17."""


def preset(name: str, **changes) -> ModelConfig:
    """The model of a preset with some fields changed."""
    return dataclasses.replace(PRESETS[name][1].model, **changes)


# A system that is to find matches gets a line here; a small head saves time.
FINDS_MATCHES: dict[str, ModelConfig] = {
    "din": preset("din/small", head_hidden=(64,)),
    "pooled_product": preset("pooled_product/small", head_hidden=(64,)),
    "kunlun": preset("kunlun/small", layers=1, head_hidden=(64,)),
    "onetrans": preset("onetrans/small", layers=1, head_hidden=(64,)),
    "hstu": preset("hstu/small", layers=1, head_hidden=(64,)),
    "interformer": preset("interformer/small", interaction_hidden=(64,)),
}
STEPS_OF = {"kunlun": 250, "din": 350, "pooled_product": 350, "onetrans": 150, "hstu": 150, "interformer": 90}
"""Fewer where a step takes long and fewer are enough."""
KUNLUN_AS_IT_WAS = preset(
    "kunlun/small",
    layers=1,
    order="pool_first",
    interaction_context="summary",
    tied_events=False,
    history_lengths=False,
    rank_feature=False,
    event_mlp_start=1.0,
    embedding_scale=0.05,
    summary_residual=False,
    aligned=False,
    pool_counts=False,
    pool_ranks=False,
    ffn_scale="post",
    ffn_tau=32.0,
    ffn_free_values=0.0,
    ffn_values_start=1.0,
    unit_products=False,
)
"""Pooling before the FFN: in one layer, nothing but a product of random maps brings candidate and events together."""


def test_the_world_has_something_to_learn():
    """Who knows the lengths alone stays far from the floor."""
    _, floor, blind = floor_and_blind()
    assert blind > floor + 3 * NEAR


@pytest.mark.parametrize("name", FINDS_MATCHES)
def test_it_finds_the_matches(name):
    assert distance(FINDS_MATCHES[name], steps=STEPS_OF.get(name, STEPS)) < NEAR


@pytest.mark.slow
def test_kunlun_as_it_was_does_not():
    assert distance(KUNLUN_AS_IT_WAS, steps=STEPS_OF["kunlun"]) > 2 * NEAR


@pytest.mark.parametrize("name", ["kunlun", "din"])
def test_without_histories_nobody_can(name):
    """So the test above can fail. A hundred steps are enough for what there is without histories."""
    assert distance(dataclasses.replace(FINDS_MATCHES[name], skip_events=("*",)), steps=100) > 3 * NEAR
