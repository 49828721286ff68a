"""Predictions of a split and the metrics of them."""

import numpy as np
import pytest

from kunlun_jax.data import pipeline
from kunlun_jax.data.pack import Counts
from kunlun_jax.data.parquet.source import open_dataset
from kunlun_jax.training.evaluate import NotFinite, Predictions, metrics_of
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


def test_several_devices_give_predictions_in_the_same_order(run, toy):
    flags = ("--model.skip-events", "like", "--loader.batch-size", "16")
    four = prepare(tiny_config(*flags, "--mesh.data", "4"), toy)
    with four.loader("valid") as loader:
        dealt = np.concatenate([batch.row for batch, _ in loader])
    assert (np.diff(dealt[dealt >= 0]) < 0).any()
    found, expected = (each.predict(each.trainer.init(), "valid") for each in (four, run))
    for name in ("row", "labels", "weights"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=1e-4)


SHUFFLED = ("--model.skip-events", "like", "--loader.batch-size", "16", "--loader.shuffle", "global")


def test_a_loader_that_shuffles_does_so_for_evaluation_alike_for_every_seed(run, toy):
    orders = []
    for seed in ("3", "4"):
        shuffled = prepare(tiny_config(*SHUFFLED, "--run.seed", seed), toy)
        with shuffled.loader("valid") as loader:
            orders.append(np.concatenate([loader.rows(number) for number in range(len(loader))]))
    rows = np.asarray(toy.split("valid"))
    np.testing.assert_array_equal(*orders)
    np.testing.assert_array_equal(np.sort(orders[0]), rows)
    assert (orders[0] != rows).any()
    state = run.trainer.init()
    found, expected = (each.predict(state, "valid") for each in (shuffled, run))
    for name in ("row", "labels", "weights"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=1e-5)


def test_training_and_evaluation_have_the_capacities_of_their_own_batches(toy, monkeypatch):
    monkeypatch.setattr(pipeline, "CAPACITY_MULTIPLE", 8)
    run = prepare(tiny_config(*SHUFFLED, "--run.seed", "1"), toy)
    used = dict.fromkeys(run.capacity, 0), dict.fromkeys(run.capacity, 0)
    loaders = [run.loader("train", training=True), *(run.loader(split) for split in toy.splits)]
    for number, loader in enumerate(loaders):
        most = used[min(number, 1)]
        with loader:
            for batch, counts in loader:
                assert set(counts.events_cut_by_capacity.values()) == {0}
                for name, jagged in (batch.events | batch.multi_valued).items():
                    most[name] = max(most[name], int(jagged.row_splits[-1]))
    assert used == (run.capacity, run.evaluation_capacity) and used[0] != used[1]
    assert run.predict(run.trainer.init(), "valid").counts.examples == 60


def predictions_of(toy, split: str, seed: int = 0) -> Predictions:
    """Random logits and labels for a split."""
    rows, rng = np.asarray(toy.split(split)), np.random.default_rng(seed)
    weights = toy.source.rows(rows, {"click": 1, "like": 1}).weights
    labels = (rng.random((60, 2)) < 0.4).astype(np.float32)
    return Predictions(rows, rng.normal(size=(60, 2)).astype(np.float32), labels, weights, Counts())


def test_metrics_of_a_task_are_over_the_rows_that_have_its_label(toy):
    predictions = predictions_of(toy, "test")
    there = np.random.default_rng(1).random(60) < 0.6
    expected = metrics_of(toy, predictions)
    predictions.labels[~there, 1] = np.nan
    found = metrics_of(toy, predictions)
    assert {n: v for n, v in found.items() if n.startswith("bought")} == {
        n: v for n, v in expected.items() if n.startswith("bought")
    }
    users = np.asarray(random_tables().examples["test"]["user_name"])[there]
    labels, logits, weights = predictions.labels[there, 1], predictions.logits[there, 1], predictions.weights[there]
    alone = evaluate_predictions(labels, logits, weights, users, p_train=toy.p_train[1])
    assert {name: found[f"rated/{name}"] for name in alone} == alone
    assert alone["rows"] == there.sum() < 60
    predictions.labels[:, 1] = np.nan
    found = metrics_of(toy, predictions)
    assert (found["rated/rows"], found["rated/ne"]) == (0, None)
    assert found["rated/undefined"] == "no row with weight has a label"
    assert found["bought/ne"] == expected["bought/ne"]


def test_a_split_without_weight_has_no_metrics_and_says_so(toy):
    predictions = predictions_of(toy, "valid")
    predictions.weights[:] = 0.0
    of_task = {"rows": 60, "ne": None, "undefined": "no row has weight"}
    expected = {f"{task}/{name}": value for task in ("bought", "rated") for name, value in of_task.items()}
    assert metrics_of(toy, predictions) == expected


def test_logits_that_are_not_finite_are_named_with_what_stands_out(tmp_path):
    """A price, then the dense field of an event, then nothing."""
    tables = random_tables()
    tables.examples["valid"]["price"][7] = 1e17
    user = tables.examples["valid"]["user"]
    place = next(row for row in range(10, 60) if user[row] in tables.events["click"]["history_key"])
    event = int(np.flatnonzero(tables.events["click"]["history_key"] == user[place])[0])
    tables.events["click"]["time_ms"][event] = tables.events["click"]["time_ms"].min()
    tables.events["click"]["seconds"][event] = -1e16
    toy = open_dataset(tables.write(tmp_path / "data"), tmp_path / "cache")
    name = tables.examples["valid"]["user_name"]

    def message(*places: int) -> str:
        predictions = predictions_of(toy, "valid")
        predictions.logits[list(places), 0] = np.inf
        with pytest.raises(NotFinite) as caught:
            metrics_of(toy, predictions)
        return str(caught.value)

    found = message(7, 20)
    count = "split 'valid': the logits of 2 of 60 examples are not finite"
    first = f"first of row 7 (user_name {str(name[7])!r}, request 1007)"
    assert found.startswith(f"{count}, {first}; its column 'price' holds 1e+17, ")
    same = [row for row in range(60) if user[row] == user[place]]
    found = message(*same)
    assert f"first of row {same[0]} " in found and "its column 'click.seconds' holds -1e+16, " in found
    other = next(row for row in range(60) if user[row] != user[place] and row != 7)
    assert message(other, 7, *same).endswith("no value of its dense columns stands out")
    assert message(*range(60)).endswith("those of no example are, so it is the parameters and not this row")


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
