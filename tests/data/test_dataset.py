"""Moments of dense features."""

import dataclasses

import numpy as np
import pytest

from kunlun_jax.data.dataset import OUTLYING, Dataset, Rows, dense_moments, group_numbers
from kunlun_jax.data.parquet.source import open_dataset as open_parquet
from kunlun_jax.data.sets.synthetic import SyntheticConfig, open_dataset
from tests.data.parquet.parquet_sets import random_tables


class Dense:
    """A source that hands out given dense features and refuses to look for histories."""

    def __init__(self, base: Dataset, dense: np.ndarray):
        self._base, self._dense, self.schema = base.source, dense, base.schema

    def rows(self, index: np.ndarray, max_events) -> Rows:
        assert set(max_events.values()) == {0}
        return dataclasses.replace(self._base.rows(index, max_events), dense=self._dense[index])

    def __len__(self) -> int:
        return len(self._dense)


def test_moments_are_those_of_the_training_rows():
    base = open_dataset(SyntheticConfig(train_rows=300, valid_rows=100, test_rows=0))
    dense = np.random.default_rng(0).normal(5, 3, (400, 4)).astype(np.float32)
    dense[:, 1] = 0.1
    dense[300:] = 1e6
    found = dense_moments(dataclasses.replace(base, source=Dense(base, dense)))
    train = dense[:300].astype(np.float64)
    np.testing.assert_allclose(found.mean, train.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std, [*train[:, :1].std(0), 1.0, *train[:, 2:].std(0)], rtol=1e-12)


def test_a_value_far_from_all_others_is_left_out_of_the_moments():
    """And of no column in which the rest does not spread."""
    base = open_dataset(SyntheticConfig(train_rows=300, valid_rows=0, test_rows=0))
    dense = np.random.default_rng(0).normal(5, 3, (300, 4)).astype(np.float32)
    low, high = np.quantile(dense[:, 0].astype(np.float64), (0.01, 0.99))
    dense[17, 0] = 1e17
    dense[17, 1] = 5 + 0.9 * OUTLYING * (high - low)  # a heavy tail may do that
    dense[:, 2], dense[17, 2] = 0.0, 7.0
    found = dense_moments(dataclasses.replace(base, source=Dense(base, dense), splits={"train": range(300)}))
    rest = np.delete(dense[:, 0].astype(np.float64), 17)
    np.testing.assert_allclose((found.mean[0], found.std[0]), (rest.mean(), rest.std()), rtol=1e-12)
    whole = dense[:, 1:].astype(np.float64)
    np.testing.assert_allclose(found.mean[1:], whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std[1:], whole.std(0), rtol=1e-12)


def test_nulls_that_are_marked_are_left_out_of_the_moments():
    """And of a feature of nulls alone nothing is."""
    base = open_dataset(SyntheticConfig(train_rows=300, valid_rows=0, test_rows=0))
    names = ("fee", "years", "fee_is_null", "years_is_null")
    schema = dataclasses.replace(base.schema, dense=names, nulls=(("fee", "indicator"), ("years", "indicator")))
    dense = np.random.default_rng(0).normal(5, 3, (300, 4)).astype(np.float32)
    dense[:, 2:] = 1.0
    dense[:2, 2] = 0.0
    dense[2:, 0] = dense[:2, 0].mean()  # as the mean stands for nulls
    dense[:, 1] = 4.0
    source = Dense(base, dense)
    source.schema = schema
    found = dense_moments(dataclasses.replace(base, source=source, splits={"train": range(300)}))
    given = dense[:2, 0].astype(np.float64)
    assert found.mean == pytest.approx((given.mean(), 4.0, dense[:, 2].mean(), 1.0), rel=1e-6)
    assert found.std == pytest.approx((given.std(), 1.0, dense[:, 2].std(), 1.0), rel=1e-6)


def test_groups_are_numbered_as_they_come(tmp_path):
    dataset = open_parquet(random_tables().write(tmp_path / "data"), tmp_path / "cache")
    index = np.random.default_rng(0).permutation(180)
    names = dataset.source.keys(index)["user_name"].tolist()
    order = list(dict.fromkeys(names))
    for chunk in (7, 1000):
        numbers = group_numbers(dataset.source, index, chunk)
        assert numbers is not None and numbers.dtype == np.int64
        assert numbers.tolist() == [order.index(name) for name in names]
