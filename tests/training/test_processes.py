"""Several processes that share a run: the same numbers, and checkpoints of any mesh."""

import numpy as np
import pytest

from kunlun_jax.nn import table_rows
from kunlun_jax.parallel import MeshConfig
from kunlun_jax.training.step import TrainState
from tests.several_processes import Several
from tests.training.mesh_steps import LARGE, SMALL, Stepped, assert_the_same, leaves, restore, save, steps


@pytest.fixture
def large_tables(monkeypatch):
    monkeypatch.setattr(table_rows, "LARGE", LARGE)


def test_two_processes_with_four_devices_are_like_one_and_like_eight(large_tables, tmp_path):
    """Steps on uneven histories and a short last batch, from a checkpoint of one device; theirs is read by one, and by
    eight.
    """

    def kept(new: TrainState) -> TrainState:
        save(new, tmp_path / "given")
        return new

    out = tmp_path / "out"
    out.mkdir()
    expected = {1: steps(MeshConfig(1), SMALL, np.float64, kept)}
    with Several(
        2, 4, "tests.training.mesh_steps", str(tmp_path / "given"), str(out), logs=tmp_path / "logs"
    ) as several:
        expected[8] = steps(MeshConfig(8), SMALL, np.float64)
        several.succeed()
    trained, logits = (dict(np.load(out / f"{name}.npz")) for name in ("trained", "logits"))
    assert any(name.startswith(".tables") and len(leaf) == table_rows.PARTS for name, leaf in trained.items())
    for devices, there in expected.items():
        found = Stepped(there.state, trained, {int(row): logit for row, logit in logits.items()})
        assert_the_same(found, there, True, f"in two processes, against {devices} devices")
        for name, leaf in leaves(restore(out / "checkpoints", there.state)).items():
            np.testing.assert_array_equal(leaf, trained[name], strict=True)
