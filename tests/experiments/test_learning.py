"""The small preset learns the synthetic world: the distance to its floor falls as data grows."""

import dataclasses

import pytest

from experiments.configs import PRESETS
from kunlun_jax.training.loop import train


def gap(rows: int, path) -> float:
    """NE less its floor on the test split, after one pass over `rows` training rows."""
    config = PRESETS["kunlun/small"][1]
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, options=dataclasses.replace(config.data.options, train_rows=rows)),
        loader=dataclasses.replace(config.loader, max_events=50),
        run=dataclasses.replace(config.run, eval_splits=("test",), progress=False, checkpoint_every=10_000),
    )
    test = train(config, path)["splits"]["test"]
    return test["ne"] - test["floor"]


@pytest.mark.slow
def test_the_gap_to_the_floor_falls_as_data_grows(tmp_path):
    few, many = gap(8_000, tmp_path / "few"), gap(64_000, tmp_path / "many")
    # Eight times the data must show by more than the noise of 20,000 test rows, about 0.01 of NE.
    assert 0 < many < few - 0.02
