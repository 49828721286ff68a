"""What a training step of a run executes and moves, from the histories of its data."""

import dataclasses

import jax
import numpy as np
import pytest

from kunlun_jax.data.pack import pack
from kunlun_jax.executed import NotCounted
from kunlun_jax.flops import TRAINING_FACTOR, total_flops
from kunlun_jax.training import run as run_module
from kunlun_jax.training.optimizer import OptimizerConfig
from kunlun_jax.training.run import prepare
from kunlun_jax.training.step import Trainer
from kunlun_jax.training.work import bytes_beside_tables, offsets_of, work_of_step
from tests.examples import BATCH, CAPACITY, CONTEXTS, SCHEMA, VIEWS, random_rows
from tests.models.tiny import tiny_model
from tests.training.tiny import tiny_config


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    """One whose step is traced, not compiled, on batches of 7 examples."""
    trainer = Trainer(tiny_model(implementation="xla"), OptimizerConfig(), steps=5, log_every=1, seed=0)
    batch, _ = pack(SCHEMA, random_rows(), BATCH, CAPACITY)
    shapes = jax.eval_shape(lambda: (trainer.init(), batch))
    trainer.traced = jax.jit(trainer._step).trace(*shapes).jaxpr, shapes
    return trainer


def lengths_of(*each: tuple[int, int]) -> dict[str, np.ndarray]:
    return {"view": np.array([view for view, _ in each]), "context": np.array([context for _, context in each])}


def test_offsets_are_those_of_the_packed_batch():
    batch, _ = pack(SCHEMA, random_rows(), len(VIEWS), CAPACITY)
    for name, lengths in (("view", VIEWS), ("context", CONTEXTS)):
        found = offsets_of(np.array(lengths), CAPACITY[name])
        np.testing.assert_array_equal(found["row_splits"], batch.events[name].row_splits)
        np.testing.assert_array_equal(found["lengths"], batch.events[name].lengths)


def test_offsets_never_leave_the_capacity():
    found = offsets_of(np.array([30, 9, 50, 2]), 64)
    assert found["row_splits"].tolist() == [0, 32, 48, 64, 64] and found["lengths"].tolist() == [30, 9, 16, 0]


def test_more_is_executed_than_is_useful_and_more_for_longer_histories(trainer):
    histories = [(view, context) for view, context in zip((*VIEWS, 2), (*CONTEXTS, 0), strict=True)]
    short, long = lengths_of(*[(1, 1)] * BATCH), lengths_of(*histories)
    works = [work_of_step(trainer, CAPACITY, BATCH, lengths) for lengths in (short, long)]
    useful = TRAINING_FACTOR * total_flops(tiny_model().parts(long))
    assert useful < works[0].flops / BATCH <= works[1].flops / BATCH
    assert works[0].bytes <= works[1].bytes


def test_tables_do_not_count_whole_and_dense_parameters_do_with_their_moments(trainer):
    state, _ = trainer.traced[1]
    rows = {name: jax.ShapeDtypeStruct((10**6, table.shape[1]), table.dtype) for name, table in state.tables.items()}
    assert bytes_beside_tables(dataclasses.replace(state, tables=rows)) == bytes_beside_tables(state)
    dense = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    # Parameters and Adam's two moments in float32, and a few numbers: steps, the key, the metric sums.
    assert 0 < bytes_beside_tables(state) - 3 * 4 * dense < 1000


def test_it_is_the_mean_over_batches(trainer):
    few, many = [(8, 0)] * BATCH, [(9, 9)] * BATCH
    first, second = (work_of_step(trainer, CAPACITY, BATCH, lengths_of(*of)) for of in (few, many))
    both = work_of_step(trainer, CAPACITY, BATCH, lengths_of(*few, *many))
    assert both.flops == pytest.approx((first.flops + second.flops) / 2)
    assert both.bytes == pytest.approx((first.bytes + second.bytes) / 2)
    assert work_of_step(trainer, CAPACITY, BATCH, lengths_of((8, 0))) == first


def test_a_trainer_that_compiled_nothing_is_refused():
    trainer = Trainer(tiny_model(), OptimizerConfig(), steps=5, log_every=1, seed=0)
    with pytest.raises(ValueError, match="the trainer has compiled no step; take one first"):
        work_of_step(trainer, CAPACITY, BATCH, lengths_of((1, 1)))


def test_a_run_says_why_nothing_is_counted(monkeypatch):
    def refuse(*arguments):
        raise NotCounted("the program calls pallas_call, whose work its trace does not tell")

    monkeypatch.setattr(run_module, "work_of_step", refuse)
    found = prepare(tiny_config("--model.skip-events", "*")).executed()
    assert found["executed_flops_per_example"] is None and found["moved_bytes_per_step"] is None
    assert "pallas_call" in str(found["not_counted"])
