"""Several processes that share a run: the same numbers, and checkpoints of any mesh."""

import numpy as np
import pytest

from kunlun_jax.data.schema import Schema
from kunlun_jax.nn import table_rows
from kunlun_jax.parallel import MeshConfig
from kunlun_jax.training.step import TrainState
from tests.several_processes import Several
from tests.training.mesh_steps import SMALL, assert_the_same, cut_small_things, leaves, restore, save, steps


@pytest.fixture
def small_things(monkeypatch):
    cut_small_things(monkeypatch.setattr)


@pytest.mark.slow
def test_two_processes_with_four_devices_are_like_one_device(small_things, tmp_path):
    """As eight devices of one process are (test_mesh.py). Uneven histories, a short last batch, and parameters that
    are cut over all eight.

    They begin with a checkpoint of one device, and theirs is read by one and by two.
    """

    def kept(schema: Schema, new: TrainState) -> TrainState:
        save(new, tmp_path / "given")
        return new

    expected = steps(MeshConfig(1), SMALL, np.float64, kept)
    out = tmp_path / "out"
    out.mkdir()
    arguments = (str(tmp_path / "given"), str(out))
    Several(2, 4, "tests.training.mesh_steps", *arguments, axis="fsdp", logs=tmp_path / "logs").succeed()
    trained, logits = (dict(np.load(out / f"{name}.npz")) for name in ("trained", "logits"))
    assert any(name.startswith(".tables") and len(leaf) == table_rows.PARTS for name, leaf in trained.items())
    by_row = {int(row): logit for row, logit in logits.items()}
    assert_the_same(expected._replace(leaves=trained, logits=by_row), expected, True, "in two processes")
    for devices in (1, 2):
        here = restore(out / "checkpoints", MeshConfig(devices), expected.schema, expected.state)
        for name, leaf in leaves(here).items():
            np.testing.assert_array_equal(leaf, trained[name], strict=True)
