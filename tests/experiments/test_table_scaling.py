"""`experiments.table_scaling` over several devices with a little model: what it compares, and that it can fail."""

import dataclasses

import pytest

from experiments import table_scaling
from experiments.configs.kunlun import small
from kunlun_jax.data.sets.synthetic import SyntheticConfig
from kunlun_jax.models.pooled_product import PooledProductConfig
from kunlun_jax.nn.table_rows import LARGE
from kunlun_jax.training.checkpoint import Checkpoints

ARGUMENTS = table_scaling.Arguments(
    rows=(LARGE, 2 * LARGE), dim=4, rounds=1, steps=2, train_rows=512, devices=4, restore=True
)


@pytest.fixture(autouse=True)
def little(monkeypatch):
    model = PooledProductConfig(dim=8, embedding_dim=4, gate_hidden=(8,), head_hidden=(8,))
    loader = dataclasses.replace(small.CONFIG.loader, batch_size=64, max_events=16)
    monkeypatch.setattr(small, "CONFIG", dataclasses.replace(small.CONFIG, model=model, loader=loader))
    world = SyntheticConfig(users=60, items_per_brand=2, brands_per_topic=2, impressions_per_day=0.03)
    monkeypatch.setattr(small, "WORLD", world)


def test_sizes_are_measured_and_the_largest_is_restored(tmp_path):
    results, checkpoint = table_scaling.measure(ARGUMENTS)
    assert [x["rows"] for x in results] == [LARGE, 2 * LARGE]
    assert [x["table_bytes"] for x in results] == [16 * LARGE, 32 * LARGE]
    assert results[0]["time_ratio"] == results[0]["temporary_ratio"] == 1
    assert checkpoint is not None and checkpoint["rows"] == 2 * LARGE
    # Compressed; new rows are random numbers, which hardly shrink.
    assert checkpoint["checkpoint_bytes"] > 0.8 * 32 * LARGE
    text = table_scaling.markdown({"sizes": results, "checkpoint": checkpoint})
    assert "| 7e4 | 1e5 |" in text and "Checkpoint of 131,072 rows" in text
    table_scaling.picture(results, tmp_path / "sizes.png")
    assert (tmp_path / "sizes.png").stat().st_size > 10_000


def test_a_restore_with_another_bit_is_told(monkeypatch):
    right = Checkpoints.restore

    def wrong(self, step, abstract):
        state, position = right(self, step, abstract)
        table = state.tables[table_scaling.TABLE]
        changed = {table_scaling.TABLE: table.at[5, 1].set(-table[5, 1])}
        return dataclasses.replace(state, tables=state.tables | changed), position

    monkeypatch.setattr(Checkpoints, "restore", wrong)
    with pytest.raises(AssertionError, match="does not go on as the saved one did"):
        table_scaling.measure(dataclasses.replace(ARGUMENTS, rows=(LARGE,)))
