"""The order of an epoch has each row once, is another one for each seed and epoch, and is had in any parts."""

import numpy as np
import pytest

from kunlun_jax.data import shuffle
from kunlun_jax.data.shuffle import computed, shuffled


@pytest.mark.parametrize("rows", [*range(1, 20), 63, 64, 65, 1000, 4096, 4097, 100_000])
def test_each_row_once(rows):
    for order in (shuffled, computed):
        got = order(rows, 3, 1, np.arange(rows))
        assert got.dtype == np.int64
        np.testing.assert_array_equal(np.sort(got), np.arange(rows))


def test_parts_are_of_the_whole():
    rows, rng = 5000, np.random.default_rng(0)
    for order in (shuffled, computed):
        whole = order(rows, 7, 0, np.arange(rows))
        for _ in range(5):
            index = rng.integers(0, rows, 100)
            np.testing.assert_array_equal(order(rows, 7, 0, index), whole[index])


def test_seeds_and_epochs_have_orders_of_their_own():
    rows = 10_000
    orders = [computed(rows, seed, epoch, np.arange(rows)) for seed in (0, 1) for epoch in (0, 1)]
    for i, one in enumerate(orders):
        # As far apart as chance makes them: places of two orders, and neighbours within one, are not alike.
        for other in (*orders[:i], np.arange(rows), np.roll(one, 1)):
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.05
            assert np.sum(one == other) < 20


def test_many_rows_are_not_listed(monkeypatch):
    def refuse(*_):
        raise AssertionError("a list of all rows was made")

    monkeypatch.setattr(shuffle, "_listed", refuse)
    got = shuffled(2**31 - 1, 0, 0, np.arange(1_000_000, 1_000_512))
    assert len(set(got.tolist())) == 512 and got.min() >= 0 and got.max() < 2**31 - 1
    assert got.std() > 2**31 / 5
