"""`experiments.parity`: its flags, and what it makes of numbers."""

import pytest

from experiments import parity


def test_bad_flags():
    with pytest.raises(ValueError, match=r"presets names \['kunlun/large'\]"):
        parity.Arguments(presets=("kunlun/small", "kunlun/large"))
    with pytest.raises(ValueError, match=r"rounds is 3; a median of fewer than 5"):
        parity.Arguments(rounds=3)


def test_ratio_is_to_the_better_mode():
    rates = {"train/jax": 60.0, "train/torch eager": 10.0, "train/torch compiled": 20.0, "predict/jax": 1.0}
    assert parity.ratio({"examples_per_second": rates}, "train") == 3.0


def test_a_picture_and_a_table_without_speeds(tmp_path):
    result = {"differences": {"small float64": {"head": (1e-15, 2e-15), "tables": (None, 0.0)}}, "speed": {}}
    assert "small float64 tables" in parity.table(result)
    parity.picture(result, tmp_path / "parity.png")
    assert (tmp_path / "parity.png").stat().st_size > 10_000
