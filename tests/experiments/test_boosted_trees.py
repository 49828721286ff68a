"""LightGBM as a row of a comparison: what it reads, what it searches for, and where it stops."""

import dataclasses

import numpy as np
import pytest

from experiments import boosted_trees
from experiments.boosted_trees import SEARCH, Settings
from experiments.configs import PRESETS
from experiments.shallow import mean_loss, read
from kunlun_jax.data.open import DataConfig
from kunlun_jax.data.pipeline import LoaderConfig
from kunlun_jax.data.sets import synthetic
from kunlun_jax.data.sets.synthetic import SyntheticConfig
from kunlun_jax.training.metrics import evaluate_predictions

WORLD = SyntheticConfig(
    train_rows=1500, valid_rows=300, test_rows=300, users=400, items_per_brand=2, brands_per_topic=2
)
HISTORY = ("lengths", "matches")


@pytest.fixture(scope="module")
def data():
    dataset = synthetic.open_dataset(WORLD)
    return dataset, read(dataset, dict.fromkeys(("impression", "click", "purchase"), 50))


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    """On one thread: several wait for each other where other tests have the cores."""
    monkeypatch.setitem(boosted_trees.TREES, "num_threads", 1)
    monkeypatch.setattr(boosted_trees, "MOST_TREES", 30)


def shuffled(data, feature):
    """The inputs with one categorical feature dealt anew to the training rows."""
    train = data["train"]
    categories = train.categories.copy()
    categories[:, feature] = np.random.default_rng(0).permutation(categories[:, feature])
    return data | {"train": dataclasses.replace(train, categories=categories)}


@pytest.mark.parametrize(("every_id", "feature"), [(False, "user_id"), (True, "user_id"), (False, "topic")])
def test_ids_of_many_values_are_read_on_request(data, every_id, feature):
    dataset, inputs = data
    names = [f.name for f in dataset.schema.categorical]
    settings = Settings(every_id=every_id, id_penalty=1.0)
    logits, _ = boosted_trees.boosted_trees(inputs, (), 0, settings)
    other, _ = boosted_trees.boosted_trees(shuffled(inputs, names.index(feature)), (), 0, settings)
    read_it = every_id or feature != "user_id"
    assert np.array_equal(logits["test"], other["test"]) != read_it


def test_the_same_seed_gives_the_same_trees_on_any_number_of_threads(data, monkeypatch):
    found = []
    for threads, seed in ((1, 0), (2, 0), (1, 1)):
        monkeypatch.setitem(boosted_trees.TREES, "num_threads", threads)
        found.append(boosted_trees.boosted_trees(data[1], HISTORY, seed)[0]["test"])
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_trees_end_where_valid_is_best(data, monkeypatch):
    """A rate this high learns the training rows by heart."""
    monkeypatch.setitem(boosted_trees.TREES, "learning_rate", 0.5)
    monkeypatch.setattr(boosted_trees, "MOST_TREES", 60)
    monkeypatch.setattr(boosted_trees, "PATIENCE", 20)
    valid = data[1]["valid"]
    logits, chosen = boosted_trees.boosted_trees(data[1], HISTORY, 0)
    assert 1 < chosen["trees"] < 40
    for trees in (chosen["trees"] - 1, chosen["trees"] + 15):
        monkeypatch.setattr(boosted_trees, "MOST_TREES", trees)
        monkeypatch.setattr(boosted_trees, "PATIENCE", 100)
        fewer, ended = boosted_trees.boosted_trees(data[1], HISTORY, 0)
        assert ended["trees"] <= trees and mean_loss(valid, fewer["valid"]) >= mean_loss(valid, logits["valid"])


def test_a_row_has_the_best_settings_of_seed_0(data, monkeypatch):
    monkeypatch.setattr(synthetic, "P_TRAIN_ROWS", 16)
    boosted_trees._searched.cache_clear()
    config = dataclasses.replace(
        PRESETS["kunlun/small"][1], data=DataConfig(options=WORLD), loader=LoaderConfig(max_events=50)
    )
    rows = {seed: boosted_trees.as_row(config, seed) for seed in (1, 0)}

    def loss(settings):
        return mean_loss(data[1]["valid"], boosted_trees.boosted_trees(data[1], HISTORY, 0, settings)[0]["valid"])

    best = min(SEARCH, key=loss)
    assert len({loss(settings) for settings in SEARCH}) > 1
    test = data[1]["test"]
    users = np.asarray(data[0].source.keys(np.asarray(data[0].split("test")))["user_id"])
    for seed, row in rows.items():
        assert {name: row[name] for name in dataclasses.asdict(best)} == dataclasses.asdict(best)
        logits, chosen = boosted_trees.boosted_trees(data[1], HISTORY, seed, best)
        assert row["trees"] == chosen["trees"] and list(row["splits"]) == ["valid", "test"]
        expected = evaluate_predictions(test.labels, logits["test"], test.weights, users, p_train=0.1)
        for name in ("logloss", "gauc"):
            assert row["splits"]["test"][name] == pytest.approx(expected[name], rel=1e-6)
    assert rows[0]["splits"]["test"]["logloss"] != rows[1]["splits"]["test"]["logloss"]
