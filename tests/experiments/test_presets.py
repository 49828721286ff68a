"""Every preset builds and runs abstractly: shapes alone, nothing allocated."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from experiments.configs import PRESETS
from experiments.configs.kunlun.small import WORLD
from kunlun_jax.data.pack import capacity_names, pack
from kunlun_jax.data.schema import Schema
from kunlun_jax.data.sets import kuairand, movielens
from kunlun_jax.data.sets.synthetic import SyntheticConfig, SyntheticSource
from kunlun_jax.flops import total_flops, total_parameters
from kunlun_jax.nn.embedding import init_tables, lookup
from tests.data.sets import fake_kuairand, fake_movielens

SOURCE = SyntheticSource(SyntheticConfig(train_rows=100, valid_rows=10, test_rows=10, users=50))


def fitting_schema(preset: str) -> Schema:
    """The synthetic schema; for a preset of other data, with event types of the names it asks for."""
    schema, model = SOURCE.schema, PRESETS[preset][1].model
    lacking = set(getattr(model, "events", ())) - {event.name for event in schema.events}
    more = tuple(dataclasses.replace(schema.events[0], name=name) for name in sorted(lacking))
    return dataclasses.replace(schema, events=schema.events + more)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_build_and_run_abstractly(preset):
    _, config = PRESETS[preset]
    schema = fitting_schema(preset)

    def forward(batch):
        model = config.model.build(schema, base_rate=(0.1,) * len(schema.tasks), rngs=nnx.Rngs(0))
        tables = init_tables(model.schema, config.model.embedding_dim, scale=0.05, key=jax.random.key(0))
        return model(batch, lookup(model.schema, batch, tables))

    rows = SOURCE.rows(np.arange(2), dict.fromkeys((event.name for event in SOURCE.schema.events), 8))
    events = {event.name: rows.events.get(event.name, rows.events["click"]) for event in schema.events}
    events |= {name: rows.events[schema.events[0].name] for name in events if name not in rows.events}
    capacity = dict.fromkeys(capacity_names(schema), 128)
    batch, _ = pack(schema, dataclasses.replace(rows, events=events), 2, capacity)
    assert jax.eval_shape(forward, batch).shape == (2, len(schema.tasks))


@functools.cache
def parts_of(preset: str):
    config, schema = PRESETS[preset][1], fitting_schema(preset)
    model = nnx.eval_shape(lambda: config.model.build(schema, base_rate=(0.1,) * len(schema.tasks), rngs=nnx.Rngs(0)))
    lengths = {event.name: np.full(4, config.loader.max_events) for event in schema.events}
    return model.parts(lengths)


def test_sizes_rise_from_small_to_large(capsys):
    flops, parameters = (
        [count(parts_of(f"kunlun/{size}")) for size in ("small", "base", "large")]
        for count in (total_flops, total_parameters)
    )
    text = ", ".join(f"{n:,} and {f:.3g}" for n, f in zip(parameters, flops, strict=True))
    with capsys.disabled():
        print(f"\nparameters (tables of a small world) and FLOPs per example of small, base, large: {text}")
    assert flops[0] * 5 < flops[1] and flops[1] * 5 < flops[2]
    assert parameters == sorted(parameters)


SYSTEMS_ALONE = ("wukong", "interformer", "hstu", "onetrans", "dlrm", "dcnv2", "din")


def useful_flops(preset: str, schema: Schema, lengths: dict[str, np.ndarray]) -> float:
    """Useful forward FLOPs of an example, the mean over histories of these lengths."""
    config, rate = PRESETS[preset][1], (0.1,) * len(schema.tasks)
    model = nnx.eval_shape(lambda: config.model.build(schema, base_rate=rate, rngs=nnx.Rngs(0)))
    return total_flops(model.parts(lengths))


@pytest.mark.parametrize("system", SYSTEMS_ALONE)
def test_the_other_systems_cost_what_small_does(system):
    """At the history lengths of its training rows, on the same batches with the same optimizer, but for its rate."""
    small, other = PRESETS["kunlun/small"][1], PRESETS[f"{system}/small"][1]
    optimizer = dataclasses.replace(other.optimizer, learning_rate=small.optimizer.learning_rate)
    assert dataclasses.replace(other, model=small.model, optimizer=optimizer) == small
    world, longest = SyntheticSource(WORLD), small.loader.max_events
    rows = np.linspace(0, WORLD.train_rows - 1, 1024).astype(np.int64)
    lengths = {e.name: world.history_lengths(rows, e.name).clip(max=longest) for e in world.schema.events}
    ratio = useful_flops(f"{system}/small", SOURCE.schema, lengths) / useful_flops(
        "kunlun/small", SOURCE.schema, lengths
    )
    assert 0.9 < ratio < 1.1


KUAIRAND_MEANS = {"click": 2.1462, "long_view": 1.4497, "like": 0.0767, "follow": 0.0044, "impression": 5.0007}
"""Mean history lengths of 4096 evenly spaced training rows of KuaiRand-Pure."""


@pytest.fixture(scope="module")
def kuairand_schema(tmp_path_factory) -> Schema:
    """Of a few made-up rows; vocabularies are smaller than the real ones, which changes no FLOPs."""
    folder = tmp_path_factory.mktemp("kuairand")
    return kuairand.open_dataset(fake_kuairand.write(folder / "raw", fake_kuairand.make_log()), folder / "cache").schema


@pytest.mark.parametrize("system", [*SYSTEMS_ALONE, "pooled_product"])
def test_the_other_systems_cost_alike_on_kuairand_and_kunlun_two_thirds_at_most(system, kuairand_schema):
    """At near exponential history lengths of the real means, on the same batches with the same passes; of the optimizer
    only the rate may differ."""
    kunlun, other = PRESETS["kunlun/kuairand"][1], PRESETS[f"{system}/kuairand"][1]
    optimizer = dataclasses.replace(other.optimizer, learning_rate=kunlun.optimizer.learning_rate)
    assert dataclasses.replace(other, model=kunlun.model, optimizer=optimizer) == kunlun
    quantiles = -np.log1p(-(np.arange(4096) + 0.5) / 4096)
    lengths = {name: np.round(quantiles * mean).astype(np.int64) for name, mean in KUAIRAND_MEANS.items()}
    ours, theirs = (useful_flops(f"{name}/kuairand", kuairand_schema, lengths) for name in ("kunlun", system))
    assert 3.6e6 < theirs < 4.2e6
    assert ours < theirs * 2 / 3


MOVIELENS_MEANS = {"like": 38, "neutral": 26, "dislike": 19}
"""Mean history lengths of 6,096 evenly spaced training rows of MovieLens-1M, the newest 50 of each type, rounded."""


@pytest.mark.parametrize("system", ["kunlun", *SYSTEMS_ALONE, "pooled_product"])
def test_all_systems_cost_alike_on_movielens(system, tmp_path):
    """At the mean history lengths, on the same batches; of the optimizer only the rate may differ."""
    kunlun, other = PRESETS["kunlun/movielens"][1], PRESETS[f"{system}/movielens"][1]
    optimizer = dataclasses.replace(other.optimizer, learning_rate=kunlun.optimizer.learning_rate)
    assert dataclasses.replace(other, model=kunlun.model, optimizer=optimizer) == kunlun
    folder = fake_movielens.write(tmp_path / "raw", fake_movielens.make_ratings())
    schema = movielens.open_dataset(folder, tmp_path / "cache").schema
    lengths = {name: np.array([mean]) for name, mean in MOVIELENS_MEANS.items()}
    assert 0.9e6 < useful_flops(f"{system}/movielens", schema, lengths) < 1.6e6


def test_every_event_of_kuairand_has_candidate_features_for_target_attention(kuairand_schema):
    assert all(kuairand_schema.matches(event.name) for event in kuairand_schema.events)


def test_large_is_as_large_as_production():
    config = PRESETS["kunlun/large"][1]
    assert config.model.dim >= 384 and config.loader.batch_size == 1152 and config.loader.max_events == 1000
    assert config.model.skip_events == () and len(SOURCE.schema.events) == 3
