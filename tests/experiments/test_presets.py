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
from kunlun_jax.data.sets.synthetic import SyntheticConfig, SyntheticSource
from kunlun_jax.flops import total_flops, total_parameters
from kunlun_jax.nn.embedding import init_tables, lookup

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


SYSTEMS_ALONE = tuple(f"{name}/small" for name in ("wukong", "interformer", "hstu", "onetrans", "dlrm", "dcnv2", "din"))


def test_the_other_systems_cost_what_small_does():
    """At the history lengths of its training rows, on the same batches with the same optimizer."""
    small = PRESETS["kunlun/small"][1]
    world, longest = SyntheticSource(WORLD), small.loader.max_events
    rows = np.linspace(0, WORLD.train_rows - 1, 1024).astype(np.int64)
    lengths = {e.name: world.history_lengths(rows, e.name).clip(max=longest) for e in world.schema.events}
    flops = {}
    for preset in ("kunlun/small", *SYSTEMS_ALONE):
        config = PRESETS[preset][1]
        assert dataclasses.replace(config, model=small.model) == small
        model = nnx.eval_shape(
            lambda config=config: config.model.build(SOURCE.schema, base_rate=(0.1,), rngs=nnx.Rngs(0))
        )
        flops[preset] = total_flops(model.parts(lengths))
    for preset in SYSTEMS_ALONE:
        assert 0.9 < flops[preset] / flops["kunlun/small"] < 1.1, flops


def test_large_is_as_large_as_production():
    config = PRESETS["kunlun/large"][1]
    assert config.model.dim >= 384 and config.loader.batch_size == 1152 and config.loader.max_events == 1000
    assert config.model.skip_events == () and len(SOURCE.schema.events) == 3
