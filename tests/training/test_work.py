"""What a training step of a run executes and moves, from the histories of its data."""

import dataclasses

import jax
import numpy as np
import pytest

from kunlun_jax.batch import Batch
from kunlun_jax.data.pack import pack
from kunlun_jax.data.shares import joined, shares
from kunlun_jax.executed import NotCounted
from kunlun_jax.flops import TRAINING_FACTOR, total_flops
from kunlun_jax.parallel import MeshConfig, make_mesh
from kunlun_jax.training import run as run_module
from kunlun_jax.training.optimizer import OptimizerConfig
from kunlun_jax.training.placement import over_devices
from kunlun_jax.training.run import prepare
from kunlun_jax.training.step import Trainer
from kunlun_jax.training.work import bytes_beside_tables, offsets_of, work_of_step
from pallas_kernels.jagged import aligned
from tests.examples import BATCH, CAPACITY, CONTEXTS, SCHEMA, VIEWS, random_rows
from tests.models.tiny import tiny_model
from tests.training.tiny import tiny_config


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    """One whose step is traced, not compiled, on batches of 7 examples."""
    trainer = Trainer(tiny_model(implementation="xla"), OptimizerConfig(), steps=5, log_every=1, seed=0)
    batch, _ = pack(SCHEMA, random_rows(), BATCH, CAPACITY)
    trainer.traced = traced(trainer, batch)
    return trainer


def traced(trainer: Trainer, batch: Batch):
    """What `Trainer.compile_step` leaves behind."""
    shapes = jax.eval_shape(lambda: (trainer.init(), batch))
    return jax.jit(over_devices(trainer._step, SCHEMA, trainer.mesh)).trace(*shapes).jaxpr, shapes


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


LONG = dict.fromkeys(CAPACITY, 16384)
"""Rows that take several trips of a loop over tiles."""


def trainer_of_long_histories(mesh: MeshConfig | None) -> Trainer:
    """One whose step is traced on 7 examples a device; its experts have as many tokens each."""
    model = tiny_model(implementation="xla", interaction_context="summary", summary_tokens=4)
    made = None if mesh is None else make_mesh(mesh)
    trainer = Trainer(model, OptimizerConfig(), steps=5, log_every=1, seed=0, mesh=made)
    batch, _ = pack(SCHEMA, random_rows(), BATCH, LONG)
    trainer.traced = traced(trainer, batch if mesh is None else joined([batch] * mesh.devices))
    return trainer


@pytest.fixture(scope="module")
def alone() -> Trainer:
    return trainer_of_long_histories(None)


@pytest.mark.parametrize("axis", ["data", "experts"])
def test_on_a_mesh_it_is_the_sum_over_devices(axis, alone):
    """Of the work that one device has for each share; experts meet the tokens of all shares, each on one device."""
    spread = trainer_of_long_histories(MeshConfig(**{axis: 2}))
    lengths = lengths_of((9000, 0), *((i % 3, 1) for i in range(2 * BATCH - 1)))
    found = work_of_step(spread, LONG, 2 * BATCH, lengths)
    dealt = shares(sum(aligned(of) for of in lengths.values()), 2)
    works = [work_of_step(alone, LONG, BATCH, {name: of[share] for name, of in lengths.items()}) for share in dealt]
    assert works[0].flops != works[1].flops
    assert found.flops == sum(work.flops for work in works)
    # Each device reads and writes the parameters that it holds; rows of tables change hands, which moves more.
    dense = 2 * bytes_beside_tables(alone.traced[1][0])
    assert found.bytes > sum(work.bytes for work in works) - (0 if axis == "data" else dense)


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
