"""The baseline on tiny data, and its design matrix entry by entry."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import logistic_regression
from experiments.logistic_regression import Arguments, matrix, one_hot
from kunlun_jax.data.open import DataConfig
from kunlun_jax.data.parquet.source import open_dataset
from kunlun_jax.data.schema import Categorical
from kunlun_jax.data.sets.synthetic import SyntheticConfig
from tests.data.parquet.parquet_sets import random_tables

DATA = DataConfig(
    options=SyntheticConfig(
        train_rows=2000, valid_rows=300, test_rows=200, users=50, items_per_brand=2, brands_per_topic=2
    )
)


@pytest.fixture(scope="module")
def result():
    return logistic_regression.run(Arguments(data=DATA, c=(1e-6, 0.05), max_events=20))


def test_c_is_the_one_with_the_least_logloss_on_valid(result):
    by_c = {float(c): loss for c, loss in result["valid_logloss_by_c"].items()}
    assert set(by_c) == {1e-6, 0.05}
    assert result["c"] == min(by_c, key=by_c.__getitem__)
    assert by_c[result["c"]] == result["splits"]["valid"]["logloss"]


def test_result_has_metrics_of_each_split_and_what_they_depend_on(result):
    assert list(result["splits"]) == ["valid", "test"]
    for split, rows in (("valid", 300), ("test", 200)):
        assert {"ne", "logloss", "auc", "gauc", "calibration"} <= set(result["splits"][split])
        assert result["splits"][split]["rows"] == rows
    assert result["environment"]["versions"]["numpy"]
    json.dumps(result)


def test_a_fit_that_was_cut_off_is_told(result, capsys):
    assert result["not_converged"] == []
    cut = logistic_regression.run(Arguments(data=DATA, c=(0.05,), max_events=20, max_iterations=2))
    assert cut["not_converged"] == ["0.05"]
    assert "C 0.05: not converged after 2 iterations (--max-iterations)" in capsys.readouterr().err


def test_it_predicts_better_than_the_base_rate():
    """Trained and measured on the same rows, it must at least have learned them."""
    arguments = Arguments(data=DATA, c=(0.3,), max_events=20, splits=("train",))
    assert logistic_regression.run(arguments)["splits"]["train"]["ne"] < 0.9


def test_main_writes_what_it_prints(tmp_path, capsys):
    out = tmp_path / "deep" / "result.json"
    synthetic = {"train-rows": 300, "valid-rows": 60, "test-rows": 60, "users": 20}
    flags = [part for name, value in synthetic.items() for part in (f"--data.{name}", str(value))]
    assert logistic_regression.main([*flags, "--c", "0.01", "--no-history", "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == json.loads(capsys.readouterr().out)


def test_a_missing_folder_exits_2(tmp_path, capsys):
    assert logistic_regression.main(["--data.root", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("error: data.root is ")


def test_ids_beyond_the_vocabulary_have_the_column_behind_it():
    ids, rows = np.asarray([0, 2, 9, 2, 2]), np.asarray([0, 0, 1, 2, 2])
    dense = one_hot(ids, rows, 4, Categorical("item", 3)).toarray()
    np.testing.assert_array_equal(dense, [[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 2, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("history", [True, False])
def test_matrix_holds_every_id_once_in_the_columns_of_its_feature(tmp_path, history):
    tables = random_tables()
    dataset = open_dataset(tables.write(tmp_path / "data"), tmp_path / "cache")
    arguments = dataclasses.replace(Arguments(), history=history, max_events=5)
    sparse, dense, (labels, weights) = matrix(dataset, "valid", arguments)
    examples = tables.examples["valid"]
    np.testing.assert_array_equal(labels, examples["bought"])
    np.testing.assert_allclose(weights, examples["weight"], rtol=1e-6)
    np.testing.assert_allclose(dense[:, 0], examples["price"], rtol=1e-6)

    user, item, tags, words = 6, 7, 5, 6  # "oov" has one more column than ids
    rows = dataset.source.rows(np.asarray(dataset.split("valid")), {"click": 5, "like": 5})
    events = [rows.events[name] for name in ("click", "like")]
    width = user + item + tags + words + (item + 4 + item if history else 0)
    assert sparse.shape == (60, width)
    x = sparse.toarray()
    np.testing.assert_array_equal(x[:, :user].argmax(1), np.minimum(examples["user"], 5))
    np.testing.assert_array_equal(x[:, :user].sum(1), 1)
    lists = [len(value) for value in examples["tags"]]
    np.testing.assert_array_equal(x[:, user + item : user + item + tags].sum(1), lists)
    if history:
        clicks = x[:, user + item + tags + words :][:, :item]
        np.testing.assert_allclose(np.expm1(clicks).sum(1), np.diff(events[0].splits), rtol=1e-5)
        assert np.diff(events[0].splits).max() == 5
