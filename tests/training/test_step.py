"""The compiled step against the same computed with whole tables, and what must not change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from kunlun_jax.batch import Batch
from kunlun_jax.models.kunlun import Kunlun
from kunlun_jax.nn.embedding import lookup
from kunlun_jax.nn.table_rows import stored_rows
from kunlun_jax.training.run import Run, prepare
from kunlun_jax.training.step import Trainer, TrainState, weighted_loss
from tests.training.tiny import tiny_config

QUICK = {"xla_backend_optimization_level": 0}
"""For what runs once: a third less time to compile. Buffers are assigned before that level matters."""


@pytest.fixture(scope="module")
def run() -> Run:
    constant = ("--optimizer.warmup", "0", "--optimizer.decay", "none", "--optimizer.learning-rate", "0.01")
    return prepare(tiny_config("--model.dropout", "0", *constant))


@pytest.fixture(scope="module")
def batches(run) -> list[Batch]:
    """Four batches on the host."""
    with run.loader("train") as loader:
        return [batch for (batch, _), _ in zip(loader, range(4), strict=False)]


def on_host(tree):
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)


def read_ids(run: Run, batch: Batch) -> dict[str, set[int]]:
    """The rows of each table that the model reads for a batch; other event types are left out."""
    schema = run.trainer.schema
    ids: dict[str, set[int]] = {name: set() for name in schema.tables}
    for column, feature in enumerate(schema.categorical):
        ids[feature.table_name] |= set(batch.categorical[:, column].tolist())
    for feature in schema.multi_valued:
        jagged = batch.multi_valued[feature.name]
        ids[feature.table_name] |= set(jagged.values[np.asarray(jagged.mask())].tolist())
    for event in schema.events:
        jagged = batch.events[event.name]
        for column, field in enumerate(event.categorical):
            ids[field.table_name] |= set(jagged.values["ids"][np.asarray(jagged.mask()), column].tolist())
    return ids


def whole_table_step(trainer: Trainer, state: TrainState, batch: Batch):
    """What a step makes of the state when its gradient is taken with respect to the whole tables."""

    def loss(params, tables):
        logits = trainer.model(params)(batch, lookup(trainer.schema, batch, tables))
        return weighted_loss(logits, batch)

    gradients = jax.grad(loss, argnums=(0, 1))(state.params, state.tables)
    updates, optimizer = trainer.dense.update(gradients[0], state.optimizer, state.params)
    tables, accumulators = {}, {}
    for name, table in state.tables.items():
        change, new = trainer.rows.update(gradients[1][name], state.table_optimizer[name])
        tables[name], accumulators[name] = table + change, new.accumulator
    return optax.apply_updates(state.params, updates), optimizer, tables, accumulators


def test_step_is_the_step_with_whole_tables(run, batches):
    trainer = run.trainer
    state, _ = trainer.step(trainer.init(), jax.device_put(batches[0]))
    params, optimizer, tables, accumulators = on_host(
        jax.jit(whole_table_step, static_argnums=0, compiler_options=QUICK)(trainer, state, batches[1])
    )
    state, _ = trainer.step(state, jax.device_put(batches[1]))
    assert int(state.step) == 2
    for name, table in tables.items():
        np.testing.assert_allclose(
            state.table_optimizer[name].accumulator, accumulators[name], rtol=1e-3, atol=1e-12, err_msg=name
        )
        np.testing.assert_allclose(state.tables[name], table, rtol=1e-3, atol=1e-5, err_msg=name)
    for new, expected in zip(jax.tree.leaves(state.optimizer), jax.tree.leaves(optimizer), strict=True):
        np.testing.assert_allclose(new, expected, rtol=1e-3, atol=1e-7)
    # Adam makes whole steps of rounding errors where a gradient is zero by symmetry, as that of a key's bias is.
    (adam,) = (part for part in optimizer[0] if isinstance(part, optax.ScaleByAdamState))
    compared = 0
    for new, expected, mean in zip(*map(jax.tree.leaves, (state.params, params, adam.mu)), strict=True):
        real = np.abs(mean) > 1e-5
        compared += real.sum()
        np.testing.assert_allclose(np.asarray(new)[real], expected[real], rtol=1e-3, atol=1e-5)
    assert compared > 500


def test_rows_that_no_example_reads_keep_every_bit(run, batches):
    trainer = run.trainer
    state = trainer.init()
    before = on_host(state)
    state, _ = trainer.step(state, jax.device_put(batches[0]))
    unread = 0
    for name, read in read_ids(run, batches[0]).items():
        others = np.setdiff1d(np.arange(len(before.tables[name])), list(read))
        unread += len(others)
        np.testing.assert_array_equal(np.asarray(state.tables[name])[others], before.tables[name][others])
        np.testing.assert_array_equal(np.asarray(state.table_optimizer[name].accumulator)[others], 0.0)
    assert unread > 20
    users = batches[0].categorical[:, 0]
    assert np.all(np.any(np.asarray(state.tables["user_id"])[users] != before.tables["user_id"][users], axis=1))


def test_examples_of_weight_zero_change_nothing(run, batches):
    trainer, batch = run.trainer, batches[0]
    weights = np.where(np.arange(batch.size) < 24, 1.0, 0.0).astype(np.float32)
    labels = batch.labels.copy()
    labels[24:] = 1 - labels[24:]
    kept = dataclasses.replace(batch, weights=weights)
    first, first_sums = trainer.step(trainer.init(), jax.device_put(kept))
    other, other_sums = trainer.step(trainer.init(), jax.device_put(dataclasses.replace(kept, labels=labels)))
    for a, b in zip(jax.tree.leaves((first, first_sums)), jax.tree.leaves((other, other_sums)), strict=True):
        np.testing.assert_array_equal(a, b)
    # A user that only such examples name keeps its row.
    users = np.setdiff1d(batch.categorical[24:, 0], batch.categorical[:24, 0])
    assert len(users)
    np.testing.assert_array_equal(np.asarray(first.tables["user_id"])[users], trainer.init().tables["user_id"][users])


def test_a_batch_without_any_weight_leaves_the_tables_alone(run, batches):
    trainer = run.trainer
    empty = dataclasses.replace(batches[0], weights=np.zeros_like(batches[0].weights))
    state, _ = trainer.step(trainer.init(), jax.device_put(empty))
    for a, b in zip(jax.tree.leaves(state.tables), jax.tree.leaves(trainer.init().tables), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_state_is_donated(run, batches):
    state = run.trainer.init()
    new, _ = run.trainer.step(state, jax.device_put(batches[0]))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.tables, state.params, state.optimizer)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))
    # The model's own parameters are not among them: a second state can be made.
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(run.trainer.init()))


def test_renewed_tables_are_those_of_the_beginning(run, batches):
    state = run.trainer.init()
    for batch in batches[:2]:
        state, _ = run.trainer.step(state, jax.device_put(batch))
    kept = on_host((state.params, state.optimizer, state.step, state.key))
    old = state.tables
    state = run.trainer.renew_tables(state)
    new = run.trainer.init()
    for name, table in new.tables.items():
        np.testing.assert_array_equal(state.tables[name], table)
        assert old[name].is_deleted()
    jax.tree.map(np.testing.assert_array_equal, on_host(state.table_optimizer), on_host(new.table_optimizer))
    now = on_host((state.params, state.optimizer, state.step, state.key))
    jax.tree.map(np.testing.assert_array_equal, now, kept)


def test_metric_sums_start_again_every_log_every_steps(run, batches):
    state = run.trainer.init()
    assert run.trainer.log_every == 3
    weights = []
    for number in range(7):
        state, progress = run.trainer.step(state, jax.device_put(batches[number % 4]))
        weights.append(float(jax.tree.leaves(progress.sums.weight)[0].sum()))
    np.testing.assert_array_equal(weights, [32.0, 64.0, 96.0, 32.0, 64.0, 96.0, 32.0])


def test_predict_is_the_model_on_what_it_looks_up(run, batches):
    state = run.trainer.init()
    batch = jax.device_put(batches[2])
    model = run.trainer.model(state.params)
    looked_up = jax.jit(lambda b, t: model(b, lookup(run.trainer.schema, b, t)), compiler_options=QUICK)
    expected = looked_up(batch, state.tables)
    np.testing.assert_allclose(run.trainer.predict(state, batch), expected, rtol=1e-6, atol=1e-6)


def test_it_learns_a_rule(run, batches):
    """Whether an item's topic is even: the label depends on nothing else."""
    trainer = run.trainer
    column = [feature.name for feature in run.dataset.schema.categorical].index("topic")
    learnable = [
        jax.device_put(dataclasses.replace(b, labels=(b.categorical[:, [column]] % 2 == 0).astype(np.float32)))
        for b in batches
    ]
    state = trainer.init()
    losses = []
    for number in range(200):
        batch = learnable[number % 4]
        if number < 4 or number >= 196:
            losses.append(float(weighted_loss(trainer.predict(state, batch), batch)))
        state, _ = trainer.step(state, batch)
    assert np.mean(losses[:4]) > 0.6
    assert np.mean(losses[4:]) < 0.1


def test_several_batches_compile_once_and_another_shape_is_an_error(run, batches):
    trainer = run.trainer
    state = trainer.init()
    for batch in batches:
        state, _ = trainer.step(state, jax.device_put(batch))
    with pytest.raises(RuntimeError, match="compiled for the first batch and cannot take this one"):
        trainer.step(state, jax.device_put(jax.tree.map(lambda leaf: leaf[:-8], batches[0])))


def tiny_kunlun(run: Run, schema=None) -> Kunlun:
    return Kunlun(
        run.dataset.schema if schema is None else schema,
        run.config.model,
        base_rate=run.dataset.p_train,
        rngs=nnx.Rngs(params=jax.random.key(0)),
    )


def test_loss_is_the_mean_by_weight_summed_over_tasks():
    logits = jnp.asarray([[0.3, -1.0], [2.0, 0.1], [-0.5, 4.0]])
    labels, weights = np.asarray([[1, 0], [0, 1], [1, 1]], np.float32), np.asarray([2.0, 0.5, 0.0], np.float32)
    empty = np.zeros((3, 0), np.float32)
    batch = Batch(
        empty.astype(np.int32), {}, empty, {}, labels, weights, np.zeros(3, np.uint32), np.arange(3, dtype=np.int32)
    )
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    losses = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).sum(1)
    assert float(weighted_loss(logits, batch)) == pytest.approx((2.0 * losses[0] + 0.5 * losses[1]) / 2.5, rel=1e-6)
    assert float(weighted_loss(logits, dataclasses.replace(batch, weights=np.zeros(3, np.float32)))) == 0.0


def test_memory_of_a_step_does_not_grow_with_a_table_and_the_table_is_updated_where_it_lies(run, batches):
    """Compiled for shapes alone: nothing of 50 million rows is made."""
    memory = {}
    for rows in (10_000, 50_000_000):
        model = tiny_kunlun(run, run.dataset.schema.resized("item_id", rows))
        trainer = Trainer(model, run.config.optimizer, steps=3, log_every=3, seed=0)
        abstract = trainer.abstract_state()
        assert abstract.tables["item_id"].shape == (stored_rows(rows), 4)
        memory[rows] = trainer.compile_step(abstract, batches[0], QUICK).memory_analysis()
    small, large = memory.values()
    assert small.temp_size_in_bytes > 0
    assert large.temp_size_in_bytes <= 1.01 * small.temp_size_in_bytes
    growth = 4 * (4 + 1) * (stored_rows(50_000_000) - 10_000)  # the table and its accumulator
    assert large.alias_size_in_bytes - small.alias_size_in_bytes == growth
    assert large.output_size_in_bytes - small.output_size_in_bytes == growth
    assert large.output_size_in_bytes - large.alias_size_in_bytes < 10_000  # what a step returns beside the state
