"""The shares of kunlun/paper, the closed form against the modules' own counts, and the search."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from experiments import flop_search, flop_shares
from experiments.configs import PRESETS
from experiments.configs.kunlun import paper
from experiments.flop_shares import PUBLISHED, counted, forward_flops, shares, without
from kunlun_jax.data.dataset import Dataset
from kunlun_jax.data.sets import synthetic
from kunlun_jax.data.sets.synthetic import SyntheticSource
from kunlun_jax.flops import total_flops
from kunlun_jax.models.config import EventConfig, KunlunConfig
from kunlun_jax.nn.attention import WHOLE_HISTORY
from kunlun_jax.nn.rotary import RoteConfig
from kunlun_jax.training.run import sample_lengths
from tests.examples import SCHEMA
from tests.models.tiny import CONFIG, EVENT

LENGTHS = {"view": np.array([0, 5, 130, 1]), "context": np.array([3, 0, 2, 64])}
OWN = EventConfig(dim=12, heads=3, tokens=3, seeds=5, layers=3, window=0, ffn_width=3, kron_rank=3)


def test_the_paper_preset_agrees_with_what_is_published_within_three_points():
    """From the modules' own counts, at the histories of its training rows."""
    config = PRESETS["kunlun/paper"][1]
    source = SyntheticSource(paper.WORLD)
    # Without the rate of clicks, which takes all events of sixteen thousand rows.
    dataset = Dataset(source, {"train": range(paper.WORLD.train_rows)}, (0.1,), "paper")
    schema, lengths, whole_model = dataset.schema, sample_lengths(dataset, config), config.model
    assert isinstance(whole_model, KunlunConfig)
    types = {event.name: whole_model.for_event(event.name) for event in schema.events}
    clicks, impressions = types["click"], types["impression"]
    printed = ("dim", "heads", "tokens", "layers", "window")
    assert [getattr(clicks, field) for field in printed] == [256, 8, 32, 3, 100]
    assert [getattr(impressions, field) for field in printed] == [128, 4, 16, 2, 50]
    assert 500 <= np.mean(lengths["purchase"]) <= 2000 and np.max(lengths["click"]) == 2000

    def flops(**changes) -> float:
        model = dataclasses.replace(whole_model, **changes)
        return total_flops(
            nnx.eval_shape(lambda: model.build(schema, base_rate=(0.1,), rngs=nnx.Rngs(0))).parts(lengths)
        )

    whole = flops()
    full = {name: dataclasses.replace(event, window=int(max(lengths[name]))) for name, event in types.items()}
    found = {
        "window attention": whole / flops(events=full) - 1,
        "CompSkip": whole / flops(pattern=("pool+ffn+attention",)) - 1,
        "event-level personalization": whole / flops(events=dict.fromkeys(types, clicks)) - 1,
    }
    assert sum(abs(found[name] - published) for name, published in PUBLISHED.items()) <= 0.03, found
    assert found == pytest.approx(shares(whole_model, schema, lengths, forward_flops))
    assert 10e9 < whole < 200e9


def test_published_are_those_of_the_specification():
    assert PUBLISHED == {"window attention": -0.295, "CompSkip": -0.431, "event-level personalization": -0.11}


CLOSED = {
    "the defaults": {},
    "sizes by type": {"events": {"context": OWN}},
    "everything in every layer, pooled first": {"pattern": ("pool+ffn+attention",), "order": "pool_first", "layers": 4},
    "the summary, gated": {"interaction_context": "summary", "summary_gate": True},
    "ablations": {"ffn_kind": "plain", "pooling": "seeds", "events": {"view": OWN}},
    "PMA, one expert": {"pooling": "pma", "experts": 1, "fm_hidden": ()},
    "input": {
        "event_input": "mlp",
        "age_feature": False,
        "rank_feature": False,
        "tied_events": False,
        "dense_tokens": 2,
    },
    "no maps": {"embedding_dim": 8, "history_lengths": False},
    "head": {"head_reads": "last", "wide": True, "head_hidden": (5, 3)},
    "every product of two tokens": {"fm_products": "pairs"},
    "an expert that keeps its tokens": {
        "dense_tokens": 1,
        "experts": 2,
        "fm_tokens": 2,
        "linear_tokens": 2,
        "layers": 5,
    },
    "one type, three experts": {"skip_events": ("view",), "experts": 3, "rote": RoteConfig(time=False)},
    "no events": {"skip_events": ("*",)},
    "full attention": {"event": dataclasses.replace(EVENT, window=WHOLE_HISTORY, layers=3)},
}


@pytest.mark.parametrize("name", CLOSED)
def test_the_closed_form_is_the_count_of_the_modules(name):
    config = dataclasses.replace(CONFIG, **CLOSED[name])
    types = config.event_types(tuple(LENGTHS))
    lengths = {name: LENGTHS[name] for name in types}
    assert forward_flops(config, SCHEMA, lengths or LENGTHS) == pytest.approx(
        counted(config, SCHEMA, lengths), rel=1e-12
    )


def test_each_part_is_taken_out_alone():
    config = dataclasses.replace(CONFIG, events={"context": OWN}, skip_events=())
    found = without(config, ("view", "context"))
    assert list(found) == list(PUBLISHED)
    rest = {"events": config.events, "pattern": config.pattern}
    for name, other in found.items():
        changed = {field for field, value in rest.items() if getattr(other, field) != value}
        assert changed == {"pattern" if name == "CompSkip" else "events"}
        assert dataclasses.replace(other, **rest) == config
    windows = found["window attention"].events
    assert {event.window for event in windows.values()} == {WHOLE_HISTORY}
    assert dataclasses.replace(windows["context"], window=OWN.window) == OWN
    assert set(found["event-level personalization"].events.values()) == {OWN}


def test_the_search_draws_the_same_again_and_the_nearest_first():
    found = flop_search.search(40, seed=1)
    assert [one.drawn for one in flop_search.search(40, seed=1)] == [one.drawn for one in found]
    assert [one.drawn for one in flop_search.search(40, seed=2)] != [one.drawn for one in found]
    off = [flop_shares.distance(one.shares) for one in found]
    assert off == sorted(off) and off[0] < off[-1]
    near, far = found[0], found[-1]
    lines = flop_search.report(found, 1).splitlines()
    assert lines[3] == f"together {100 * off[0]:.1f} points apart" and f"layers {near.drawn['layers']}" in lines[4]
    assert far.drawn["longest_small"] <= far.drawn["longest"]


def test_a_drawn_model_is_counted_by_its_modules_too():
    """Ten event types: what the search makes of the synthetic world's three."""
    drawn = {name: values[-1] for name, values in flop_search.CHOICES.items()}
    schema, lengths, big, small = flop_search.data_of(2, 2, 10.0, 500, 250)
    assert big == ("click", "purchase") and small == ("impression", "impression_3")
    model = flop_search.model_of(drawn, big, small)
    assert isinstance(model, KunlunConfig) and model.experts == 8 and model.for_event("impression_3").dim == 128
    assert max(lengths["click"]) == 500 and max(lengths["impression_3"]) == 250
    assert forward_flops(model, schema, lengths) == pytest.approx(counted(model, schema, lengths), rel=1e-12)


def test_the_command(capsys, monkeypatch):
    monkeypatch.setattr(synthetic, "P_TRAIN_ROWS", 16)
    assert flop_shares.main(["--preset", "kunlun/by_type", "--length", "64"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("kunlun/by_type: ") and "events on average: impression 64, click 64, purchase 64" in text
    assert "CompSkip" in text and "published -43.1%" in text
    assert flop_shares.main(["--preset", "wukong/small"]) == 2
    assert "preset is 'wukong/small'; it must be one of Kunlun's" in capsys.readouterr().err
