"""Several processes that share a run: the same numbers, and checkpoints of any mesh."""

import numpy as np
import pytest

from kunlun_jax.nn import table_rows
from kunlun_jax.parallel import MeshConfig
from tests.several_processes import Several
from tests.training.mesh_steps import LARGE, SMALL, Stepped, assert_the_same, leaves, restore, save, steps


@pytest.fixture
def large_tables(monkeypatch):
    monkeypatch.setattr(table_rows, "LARGE", LARGE)


def test_two_processes_with_four_devices_are_like_one_and_like_eight(large_tables, tmp_path):
    """Steps on uneven histories and a short last batch; checkpoints from one device to 2 x 4, and back."""
    one, eight = (steps(MeshConfig(devices), SMALL, np.float64) for devices in (1, 8))
    save(one.state, tmp_path / "given")
    out = tmp_path / "out"
    out.mkdir()
    Several(2, 4, "tests.training.mesh_steps", str(tmp_path / "given"), str(out), logs=tmp_path / "logs").succeed()
    restored, trained, logits = (dict(np.load(out / f"{name}.npz")) for name in ("restored", "trained", "logits"))
    found = Stepped(eight.state, trained, {int(row): logit for row, logit in logits.items()})
    assert any(name.startswith(".tables") and len(leaf) == table_rows.PARTS for name, leaf in trained.items())
    for expected, devices in (one, 1), (eight, 8):
        assert_the_same(found, expected, True, f"in two processes, against {devices} devices")
        for name, leaf in leaves(restore(out / "checkpoints", expected.state)).items():
            np.testing.assert_array_equal(leaf, trained[name], strict=True)
    for name, leaf in one.leaves.items():
        np.testing.assert_array_equal(restored[name], leaf, strict=True)
