"""What holds of every system beside Kunlun: what its logits may depend on and what they must."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kunlun_jax.data.pack import pack
from kunlun_jax.models.config import KunlunConfig
from kunlun_jax.nn.embedding import lookup
from tests.examples import (
    BATCH,
    CAPACITY,
    CONTEXTS,
    SCHEMA,
    VIEWS,
    random_batch,
    random_rows,
    spoil_gaps,
    take_rows,
    tiny_tables,
)
from tests.models.systems import QUICK, TINY, all_configs, compiled_run, tiny_system

EXAMPLES = len(VIEWS)


@functools.cache
def run_of(name: str):
    """Loss, logits and gradients of a batch, compiled once a system."""
    return compiled_run(tiny_system(name, implementation="reference"))


def test_every_system_is_tested():
    assert {type(config) for config in TINY.values()} | {KunlunConfig} == all_configs()


@pytest.mark.parametrize("name", TINY)
def test_logits_of_every_task_and_gradients_of_every_leaf(name):
    _, logits, gradients = run_of(name)(random_batch())
    assert logits.shape == (BATCH, 2) and logits.dtype == np.float32
    assert np.isfinite(logits).all() and logits.std(axis=0).min() > 1e-3
    # A leaf without a gradient would be a part that nothing reads.
    leaves = jax.tree_util.tree_leaves_with_path(gradients)
    assert [jax.tree_util.keystr(path) for path, leaf in leaves if not np.abs(leaf).max() > 0] == []


@pytest.mark.parametrize("name", TINY)
def test_the_xla_operators_give_the_same_logits(name):
    model = tiny_system(name, implementation="xla")
    tables = tiny_tables(model.schema, dim=model.embedding_dim)
    forward = jax.jit(lambda batch: model(batch, lookup(model.schema, batch, tables)), compiler_options=QUICK)
    np.testing.assert_allclose(forward(random_batch()), run_of(name)(random_batch())[1], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", TINY)
def test_nan_in_rows_without_event_changes_neither_logits_nor_gradients(name):
    expected, found = run_of(name)(random_batch()), run_of(name)(spoil_gaps(random_batch()))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("name", TINY)
def test_nobody_has_a_history(name):
    found = run_of(name)(random_batch((0,) * EXAMPLES, (0,) * EXAMPLES))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("name", TINY)
def test_a_logit_depends_on_its_own_example_alone(name):
    rows = random_rows()

    def of(index) -> np.ndarray:
        batch, _ = pack(SCHEMA, take_rows(rows, index), BATCH, CAPACITY)
        return run_of(name)(jax.tree.map(jnp.asarray, batch))[1][: len(index)]

    before = of(range(EXAMPLES))
    permuted = np.random.default_rng(0).permutation(EXAMPLES)
    np.testing.assert_allclose(of(permuted), before[permuted], rtol=1e-5, atol=1e-5)
    for example in (2, 4):  # alone, with rows that only fill the batch; the longest history, and none
        np.testing.assert_allclose(of([example])[0], before[example], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_each_event_field_reaches_the_logits_of_its_example(name):
    batch = random_batch()
    before = run_of(name)(batch)[1]
    for event, lengths in (("view", VIEWS), ("context", CONTEXTS)):
        events = batch.events[event]
        for field, change in (("ids", 1), ("dense", 7.0), ("age", 1e6)):
            if not events.values[field].size:
                continue
            example = int(np.argmax(lengths))
            row = int(events.row_splits[example]) + lengths[example] // 2
            changed = events.replace(events.values | {field: events.values[field].at[row].add(change)})
            other = dataclasses.replace(batch, events=batch.events | {event: changed})
            moved = np.abs(run_of(name)(other)[1] - before)
            assert moved[example].max() > 1e-5, (event, field)
            np.testing.assert_allclose(np.delete(moved, example, axis=0), 0, atol=1e-6)


@pytest.mark.parametrize("name", TINY)
def test_without_event_types(name):
    model = tiny_system(name, skip_events=("*",), implementation="reference")
    batch = random_batch()
    tables = tiny_tables(model.schema, dim=model.embedding_dim)
    found = jax.eval_shape(lambda b: model(b, lookup(model.schema, b, tables)), dataclasses.replace(batch, events={}))
    assert found.shape == (BATCH, 2)
    # A checkpoint cannot hold an array without elements.
    assert all(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize("name", TINY)
def test_bfloat16_computes_in_bfloat16_on_float32_parameters(name):
    """Under strict promotion, so that nothing falls back to float32 unseen; gradients have the dtype of parameters."""
    model = tiny_system(name, dtype="bfloat16", implementation="reference")
    graph, params = nnx.split(model, nnx.Param)
    tables = tiny_tables(model.schema, dim=model.embedding_dim)

    def loss(params, batch):
        model = nnx.merge(graph, params)
        embedded = lookup(model.schema, batch, tables)
        x, events, _ = model.inputs(batch, embedded)
        assert {a.dtype.name for a in (x, *(s.values for s in events.values()))} == {"bfloat16"}
        logits = model(batch, embedded)
        return logits.sum(), logits

    gradients, logits = jax.eval_shape(jax.grad(loss, has_aux=True), params, random_batch())
    assert logits.dtype == np.float32
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradients)} == {"float32"}


@pytest.mark.parametrize("name", TINY)
def test_learning(name):
    """Forty steps of Adam on one batch take more than a third of the loss away."""
    run, batch = run_of(name), random_batch()
    # NumPy's, so that a step is not hundreds of dispatches.
    weights = jax.tree.map(np.asarray, run.weights)
    mean = square = jax.tree.map(np.zeros_like, weights)
    losses = []
    for _ in range(40):
        loss, _, gradients = run(batch, weights)
        losses.append(loss)
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * np.asarray(g), mean, gradients)
        square = jax.tree.map(lambda s, g: 0.9 * s + 0.1 * np.asarray(g) ** 2, square, gradients)
        weights = jax.tree.map(
            lambda w, m, s: (w - 0.01 * m / (np.sqrt(s) + 1e-6)).astype(w.dtype), weights, mean, square
        )
    assert losses[-1] < 0.66 * losses[0], losses
