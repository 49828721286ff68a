"""`experiments.parity`: its flags, its batches, and what it makes of numbers."""

import numpy as np
import pytest

from experiments import parity
from kunlun_jax.data.sets.synthetic import SyntheticConfig, SyntheticSource

SCHEMA = SyntheticSource(SyntheticConfig()).schema


def test_bad_flags():
    with pytest.raises(ValueError, match=r"presets names \['kunlun/large'\]"):
        parity.Arguments(presets=("kunlun/small", "kunlun/large"))
    with pytest.raises(ValueError, match=r"rounds is 3; a median of fewer than 5"):
        parity.Arguments(rounds=3)


def test_full_histories_are_full_and_jagged_ones_are_like_kuairand():
    full, jagged = (parity.random_batch(SCHEMA, 256, 200, lengths) for lengths in ("full", "jagged"))
    for event in SCHEMA.events:
        assert (full.events[event.name].lengths == 200).all()
        lengths = np.asarray(jagged.events[event.name].lengths)
        assert 0.05 < lengths.mean() / 200 < 0.1 and lengths.min() == 0 and lengths.max() > 60
        ages = jagged.events[event.name].values["age"]
        start = int(jagged.events[event.name].row_splits[int(lengths.argmax())])
        assert (np.diff(ages[start : start + lengths.max()]) <= 0).all()


def test_ratio_is_to_the_better_mode():
    rates = {"train/jax": 60.0, "train/torch eager": 10.0, "train/torch compiled": 20.0, "predict/jax": 1.0}
    assert parity.ratio({"examples_per_second": rates}, "train") == 3.0


def test_a_picture_and_a_table_without_speeds(tmp_path):
    result = {"differences": {"small float64": {"head": (1e-15, 2e-15), "tables": (None, 0.0)}}, "speed": {}}
    assert "small float64 tables" in parity.table(result)
    parity.picture(result, tmp_path / "parity.png")
    assert (tmp_path / "parity.png").stat().st_size > 10_000
