"""Predictions of a split and the metrics of them."""

import numpy as np
import pytest

from kunlun_jax.data.pack import Counts
from kunlun_jax.data.parquet.source import open_dataset
from kunlun_jax.training.evaluate import Predictions, metrics_of
from kunlun_jax.training.metrics import evaluate_predictions
from kunlun_jax.training.run import prepare
from tests.data.parquet.parquet_sets import random_tables
from tests.training.tiny import tiny_config


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Two tasks, keys that are strings, 60 rows a split; seven of "valid" have weight 0."""
    root = tmp_path_factory.mktemp("toy")
    tables = random_tables()
    tables.examples["valid"]["weight"][:7] = 0.0
    return open_dataset(tables.write(root / "data"), root / "cache")


@pytest.fixture(scope="module")
def run(toy):
    return prepare(tiny_config("--model.skip-events", "like", "--loader.batch-size", "16"), toy)


def test_predictions_are_one_per_row_in_order_and_filling_rows_have_none(run, toy):
    predictions = run.predict(run.trainer.init(), "valid")
    rows = np.asarray(toy.split("valid"))
    assert len(rows) % 16 != 0
    np.testing.assert_array_equal(predictions.row, rows)
    source = toy.source.rows(rows, {"click": 16, "like": 16})
    np.testing.assert_array_equal(predictions.labels, source.labels)
    np.testing.assert_array_equal(predictions.weights, source.weights)
    np.testing.assert_array_equal(predictions.weights == 0, np.arange(60) < 7)  # such rows have predictions too
    assert predictions.logits.shape == (60, 2) and np.isfinite(predictions.logits).all()
    assert predictions.counts.examples == 60 and predictions.counts.filled == 4


def test_metrics_of_each_task_have_its_name_and_its_rate(toy):
    rows = np.asarray(toy.split("test"))
    rng = np.random.default_rng(0)
    source = toy.source.rows(rows, {"click": 1, "like": 1})
    labels = (rng.random((60, 2)) < 0.4).astype(np.float32)
    logits = rng.normal(size=(60, 2)).astype(np.float32)
    metrics = metrics_of(toy, Predictions(rows, logits, labels, source.weights, Counts()))
    users = np.asarray(random_tables().examples["test"]["user_name"])
    for index, task in enumerate(("bought", "rated")):
        expected = evaluate_predictions(
            labels[:, index], logits[:, index], source.weights, users, p_train=toy.p_train[index]
        )
        assert {name: metrics[f"{task}/{name}"] for name in expected} == expected
        assert expected["gauc"] is not None
    assert toy.p_train[0] != toy.p_train[1]
