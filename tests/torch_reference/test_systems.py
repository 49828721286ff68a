"""The twins of Wukong, InterFormer and HSTU: names complete both ways, outputs and gradients equal in float64."""

import dataclasses

import jax
import pytest
from flax import nnx

from kunlun_jax.nn.rotary import RoteConfig
from kunlun_jax.torch_reference import parity, weights
from kunlun_jax.torch_reference.registry import TWINS, make_twin
from tests.examples import CONTEXTS, SCHEMA, VIEWS, build, tiny_tables
from tests.models.systems import TINY
from tests.torch_reference.test_parity import (
    ALL_EMPTY,
    GRADIENT,
    MOMENTS,
    OUTPUT,
    QUICK,
    assert_same,
    batch_of,
)

LONG = ((12, 0, 33, 9, 8, 1), (0, 0, 25, 17, 3, 8))
"""Longer than a tile, and empty ones of each event type and of both."""
CHOICES: dict[str, tuple[str, dict, tuple]] = {
    "wukong": ("wukong", {"implementation": "xla"}, (VIEWS, CONTEXTS)),
    "wukong, other choices": (
        "wukong",
        {
            "history_pooling": "mean",
            "unit_products": False,
            "token_norm": False,
            "fm_hidden": (),
            "event_input": "mlp",
            "layers": 3,
            "wide": True,
        },
        LONG,
    ),
    "wukong, nobody has a history": ("wukong", {}, ALL_EMPTY),
    "interformer": ("interformer", {"implementation": "xla"}, (VIEWS, CONTEXTS)),
    "interformer, other choices": (
        "interformer",
        {
            "interaction": "dcn",
            "wide": True,
            "gate": "sigmoid",
            "ffn_residual": False,
            "interaction_residual": False,
            "cross_rank": 0,
            "cross_layers": 2,
            "layers": 1,
            "heads": 4,
            "attention_norm": False,
            "recent_tokens": 5,
            "rote": RoteConfig(reading="gap"),
        },
        LONG,
    ),
    "interformer, dot products alone, no events": (
        "interformer",
        {"interaction": "dot", "gate": "identity", "unit_products": False, "skip_events": ("*",)},
        (VIEWS, CONTEXTS),
    ),
    "interformer, nobody has a history": ("interformer", {}, ALL_EMPTY),
    "hstu": ("hstu", {}, (VIEWS, CONTEXTS)),
    "hstu, long": (
        "hstu",
        {
            "positions": 40,
            "time_buckets": 12,
            "heads": 1,
            "candidate_hidden": (),
            "tied_candidate": False,
            "head_context": True,
            "wide": True,
        },
        LONG,
    ),
    "hstu, without biases": ("hstu", {"biased": False, "implementation": "xla"}, LONG),
    "hstu, nobody has a history": ("hstu", {}, ALL_EMPTY),
    "hstu, no events": ("hstu", {"skip_events": ("*",)}, (VIEWS, CONTEXTS)),
}
"""System, changes of its tiny config, lengths of the histories."""
SLOW = [choice for choice in CHOICES if "nobody" in choice] + ["hstu, without biases", "hstu, no events"]


def config_of(choice: str, **changes):
    system, own, _ = CHOICES[choice]
    return dataclasses.replace(TINY[system], **{"implementation": "reference"} | own | changes)


def jax_model(config, *, seed: int = 0):
    return build(
        lambda: config.build(SCHEMA, base_rate=(0.2, 0.02), dense_moments=MOMENTS, rngs=nnx.Rngs(0)), seed=seed
    )


@pytest.mark.parametrize("choice", [pytest.param(c, marks=pytest.mark.slow if c in SLOW else []) for c in CHOICES])
def test_float64(choice):
    with parity.precision("float64"):
        config = config_of(choice, dtype="float64")
        model = jax_model(config)
        tables = tiny_tables(model.schema, dim=config.embedding_dim)
        pair = parity.Pair.of(model, tables, SCHEMA, config, MOMENTS)
        comparison = parity.compare(pair, batch_of(SCHEMA, *CHOICES[choice][2]), QUICK)
    assert {"context", "head"} <= set(comparison.outputs)
    assert_same(comparison, OUTPUT, GRADIENT)


@pytest.mark.parametrize("choice", CHOICES)
def test_names_are_complete_both_ways(choice):
    config = config_of(choice)
    model = jax_model(config)
    params, tables = nnx.state(model, nnx.Param), tiny_tables(model.schema, dim=config.embedding_dim)
    ours = weights.from_nnx(params, tables)
    assert len(ours) == len(jax.tree.leaves((params, tables)))  # no two leaves have one name
    twin = make_twin(SCHEMA, config)
    assert {n: a.shape for n, a in ours.items()} == {n: tuple(t.shape) for n, t in twin.state_dict().items()}
    weights.into_torch(ours, twin)
    new_params, new_tables = weights.into_nnx(weights.from_torch(twin), *jax.eval_shape(lambda: (params, tables)))
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(new_params), jax.tree.leaves(params), strict=True))
    assert all((new_tables[name] == tables[name]).all() for name in tables)


@pytest.mark.slow
def test_a_wrong_weight_is_found():
    with parity.precision("float64"):
        config = config_of("interformer", dtype="float64", implementation="reference")
        model = jax_model(config)
        pair = parity.Pair.of(model, tiny_tables(model.schema, dim=config.embedding_dim), SCHEMA, config, MOMENTS)
        pair.twin.summary.history_gate["event_view"].mlp.layers[0].bias.data[0] += 1e-3
        outputs = parity.compare(pair, batch_of(), QUICK).outputs
    assert {name for name, difference in outputs.items() if difference > OUTPUT} == {"head"}


def test_a_system_without_a_twin():
    assert type(TINY["din"]) not in TWINS
    with pytest.raises(TypeError, match=r"config is a DINConfig; twins are of \['KunlunConfig', .*'HSTUConfig'\]"):
        make_twin(SCHEMA, TINY["din"])
