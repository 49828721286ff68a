"""Training on several devices gives the numbers of one, whatever lies where."""

import dataclasses
import json
import os
import re
import signal
from collections import Counter

import jax
import numpy as np
import pytest

from kunlun_jax.models.base import ModelConfig
from kunlun_jax.nn import table_rows
from kunlun_jax.parallel import MeshConfig
from kunlun_jax.training import exchange, json_lines
from kunlun_jax.training.checkpoint import Checkpoints
from kunlun_jax.training.config import TrainConfig
from kunlun_jax.training.loop import train
from kunlun_jax.training.placement import over_devices
from kunlun_jax.training.run import Run
from kunlun_jax.training.step import LossWeights, Trainer, weighted_loss
from tests.training import mesh_steps
from tests.training.mesh_steps import CONSTANT, SHARED, SMALL, assert_the_same, cut_small_things, steps
from tests.training.tiny import tiny_config


@pytest.fixture(autouse=True)
def small_things(monkeypatch):
    cut_small_things(monkeypatch.setattr)


def prepared(devices: int, *flags: str, model: ModelConfig | None = None) -> Run:
    return mesh_steps.prepared(MeshConfig(devices), *flags, model=model)


def check_the_same(model: ModelConfig | None, dtype, meshes: tuple[MeshConfig, ...]) -> None:
    """Uneven histories, and a last batch with rows that only fill it up.

    In float32 not every leaf can be compared: where the gradient is zero but for rounding, as of the bias of softmax
    keys, Adam makes steps of its whole rate of that. What they lead to is the same: logits and metrics.
    """
    expected, *others = (steps(mesh, model, dtype) for mesh in (MeshConfig(), *meshes))
    assert any(name.startswith(".tables") and len(leaf) == table_rows.PARTS for name, leaf in expected.leaves.items())
    exact = dtype == np.float64
    for mesh, found in zip(meshes, others, strict=True):
        assert_the_same(found, expected, exact, f"on {mesh.named}")


@pytest.mark.parametrize(
    ("dtype", "meshes"),
    [
        (np.float32, (MeshConfig(2, fsdp=4),)),
        (np.float64, (MeshConfig(2, fsdp=2),)),
        pytest.param(np.float64, (MeshConfig(2), MeshConfig(8), MeshConfig(1, fsdp=8)), marks=pytest.mark.slow),
    ],
)
def test_any_mesh_trains_the_same(dtype, meshes):
    check_the_same(SMALL, dtype, meshes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "meshes"),
    [
        (np.float32, (MeshConfig(2, experts=2),)),
        (np.float64, (MeshConfig(4), MeshConfig(1, experts=2), MeshConfig(2, fsdp=2, experts=2))),
    ],
)
def test_kunlun_trains_the_same_on_any_mesh(dtype, meshes):
    check_the_same(None, dtype, meshes)


def test_missing_labels_count_over_all_devices():
    """One device may have all labels of a task, and the loss is that of the batch as a whole."""

    def loss(devices: int) -> float:
        run = prepared(devices, "--data.conversion", model=SMALL)
        trainer, state = run.trainer, run.trainer.init()
        with run.loader("train") as loader:
            batch = next(loader)[0]
        labels = batch.labels.copy()
        labels[batch.row % 3 > 0, 1] = np.nan

        def share(state, batch):
            return trainer.sum(weighted_loss(batch.dense[:, :2], batch, LossWeights.of(batch, trainer.sum)))

        over = jax.jit(over_devices(share, trainer.schema, trainer.mesh, gives="sums"))
        return float(over(state, trainer.put(dataclasses.replace(batch, labels=labels))))

    assert loss(4) == pytest.approx(loss(1), rel=1e-6)


def test_what_travels_in_a_step():
    """Of a large table ids and rows by all-to-all, there and back; sums of what all have; no table as a whole."""
    devices = 4
    run = prepared(devices, model=SMALL)
    with run.loader("train") as loader:
        batch = run.trainer.put(next(loader)[0])
    state = run.trainer.init()
    step = jax.jit(over_devices(run.trainer._step, run.trainer.schema, run.trainer.mesh))
    text = step.trace(state, batch).lower().as_text()
    dealt = [name for name, table in run.trainer.schema.tables.items() if table_rows.is_dealt(table.rows)]
    assert dealt
    sent = re.findall(r'"stablehlo.all_to_all".*?: \(tensor<([^>]*)>\)', text)
    kinds = Counter("rows" if size.endswith("x4xf32") else "ids" for size in sent)
    assert kinds == {"rows": 2 * len(dealt), "ids": 2 * len(dealt)}
    ids = batch.categorical.shape[0] // devices  # ids of an item on a device: of the candidate and of all histories
    ids += sum(events.rows // devices for events in batch.events.values())
    assert max(int(size.split("x")[0]) for size in sent) <= 1.3 * ids + devices * exchange.LEAST
    assert "all_gather" not in text and "collective_permute" not in text
    summed = re.findall(r'"stablehlo.all_reduce".*?\}\) : \(tensor<([^>]*)>\)', text, re.DOTALL)
    whole = {f"{table.rows}x4xf32" for name, table in run.trainer.schema.tables.items() if name not in dealt}
    parameters = {"x".join(map(str, (*leaf.shape, "f32"))) for leaf in jax.tree.leaves(state.params)}
    assert whole | parameters <= set(summed)
    assert not any(size.startswith(f"{table_rows.PARTS // devices}x4x") for size in summed)


def test_a_checkpoint_of_one_mesh_is_read_on_another(tmp_path):
    run = mesh_steps.prepared(MeshConfig(1, fsdp=8), *SHARED)
    state = run.trainer.init()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {"loader": {}})
    checkpoints.wait()
    checkpoints.close()
    for mesh in (MeshConfig(), MeshConfig(2, fsdp=2), MeshConfig(1, experts=2), MeshConfig(8)):
        other = mesh_steps.prepared(mesh, *SHARED).trainer
        restored, _ = Checkpoints(tmp_path).restore(1, other.abstract_state())
        for there, here, new in zip(*(jax.tree.leaves(x) for x in (state, restored, other.init())), strict=True):
            np.testing.assert_array_equal(here, there)
            assert here.sharding.is_equivalent_to(new.sharding, here.ndim)
    table = restored.tables["user_id"]
    assert len(table) == table_rows.PARTS
    assert {shard.data.shape[0] for shard in table.addressable_shards} == {table_rows.PARTS // 8}


@pytest.mark.slow
def test_a_run_goes_on_on_other_devices(tmp_path, monkeypatch):
    """Begun on eight, continued on four and ended on one, it reads every example once and ends like a run on one."""

    def config(mesh: MeshConfig, name: str) -> TrainConfig:
        return dataclasses.replace(tiny_config(*CONSTANT, directory=tmp_path / name), model=SMALL, mesh=mesh)

    expected = train(config(MeshConfig(), "one"), tmp_path / "one")
    step, taken = Trainer.step, []

    def stopping(self, state, batch):
        taken.append(np.asarray(batch.row))
        if len(taken) in (5, 12):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, state, batch)

    monkeypatch.setattr(Trainer, "step", stopping)
    assert train(config(MeshConfig(1, fsdp=8), "moved"), tmp_path / "moved")["stopped"] == 5
    assert train(config(MeshConfig(2, fsdp=2), "moved"), tmp_path / "moved")["stopped"] == 12
    result = train(config(MeshConfig(), "moved"), tmp_path / "moved")
    stored = json.loads((tmp_path / "moved" / "config.json").read_text())
    assert "item_id" in stored["dealt_tables"]  # a run from before rows were dealt has none, and is refused
    rows = np.concatenate(taken)
    np.testing.assert_array_equal(np.sort(rows[rows >= 0]), np.arange(608))
    for split, values in expected["splits"].items():
        assert result["splits"][split]["ne"] == pytest.approx(values["ne"], rel=1e-5)
    lines = [json_lines.read(tmp_path / name / "metrics.jsonl") for name in ("one", "moved")]
    events = [sum(line.get("events/click", 0) for line in of if line["kind"] == "train") for of in lines]
    assert events[0] == events[1] > 0
    assert all("events_of_fullest" not in line for line in lines[0])
    assert {line["step"] for line in lines[1] if line.get("events_of_fullest", 0) > 0} >= {3, 6, 9, 12}


def test_too_few_devices_and_uneven_ones():
    with pytest.raises(
        ValueError, match=r"mesh\.data 16 is 16 devices, and there are 8 \(cpu\).*JAX_NUM_CPU_DEVICES=16"
    ):
        prepared(16)
    for fields in ({"data": 3}, {"fsdp": 3}, {"experts": 3}):
        with pytest.raises(ValueError, match=rf"mesh\.{next(iter(fields))} is 3; it must be a power of two"):
            MeshConfig(**fields)
    with pytest.raises(ValueError, match=r"mesh\.data 256 x mesh\.fsdp 4 is 1024 devices; they must be 512 at most"):
        MeshConfig(256, fsdp=4)
    with pytest.raises(ValueError, match=r"mesh\.experts is 2, and this model has no GlobalInteraction; it must be 1"):
        mesh_steps.prepared(MeshConfig(1, experts=2), model=SMALL)
    with pytest.raises(ValueError, match="batch_size 36 must be a multiple of 8"):
        prepared(8, "--loader.batch-size", "36")


def test_a_last_batch_with_fewer_examples_than_devices():
    """Some devices have none, and every example comes once."""
    run = prepared(8, "--data.train-rows", "577", "--data.valid-rows", "1")
    for split, count in (("train", 577), ("valid", 1)):
        with run.loader(split) as loader:
            *_, last = batches = [batch for batch, _ in loader]
        rows = np.concatenate([batch.row for batch in batches])
        np.testing.assert_array_equal(np.sort(rows[rows >= 0]) - run.dataset.split(split).start, np.arange(count))
        assert (last.row.reshape(8, -1) >= 0).any(axis=1).sum() == 1
        assert last.weights.sum() == 1


def test_the_fullest_share_is_counted():
    run = prepared(4)
    with run.loader("train") as loader:
        batch, counts = next(loader)
    splits = batch.events["click"].row_splits.reshape(4, -1)
    assert (splits[:, 0] == 0).all() and splits.shape[1] == 32 // 4 + 1
    events = np.sum([x.lengths.reshape(4, -1).sum(axis=1) for x in batch.events.values()], axis=0)
    assert counts.events_of_fullest == events.max()
    assert sum(counts.events.values()) == events.sum()
    assert dataclasses.replace(counts, events_of_fullest=0) == _counts_of_one(run)


def _counts_of_one(run: Run):
    with prepared(1).loader("train") as loader:
        return next(loader)[1]
