"""A data set in which one task has labels for some rows only: trained, evaluated, and fitted by the baseline."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from experiments import evaluate, logistic_regression, train
from kunlun_jax.data.open import DataConfig
from kunlun_jax.data.parquet.source import ParquetConfig
from kunlun_jax.training import json_lines
from tests.data.parquet.parquet_sets import Tables, random_tables
from tests.experiments.tiny import ANY_MODEL


@pytest.fixture(scope="module")
def tables() -> Tables:
    """Half of the rows have no "bought", which is the first task, and those of the test split none at all."""
    tables = random_tables()
    tables.schema = dataclasses.replace(tables.schema, nulls=(("bought", "masked"),))
    rng = np.random.default_rng(0)
    for split, columns in tables.examples.items():
        there = rng.random(60) < (0.0 if split == "test" else 0.5)
        columns["bought"] = pa.array(columns["bought"], pa.int64(), mask=~there)
    return tables


@pytest.fixture(scope="module")
def finished(tables, tmp_path_factory) -> Path:
    """A folder with the data (``data``) and a run on it (``run``)."""
    folder = tmp_path_factory.mktemp("missing")
    tables.write(folder / "data")
    where = {"--data.root": "data", "--data.cache": "cache", "--run.dir": "run"}
    more = ["--model.skip-events", "like", "--loader.batch-size", "16"]
    assert train.main([*ANY_MODEL, *more, *(x for k, v in where.items() for x in (k, str(folder / v)))]) == 0
    return folder


def known(tables: Tables, split: str) -> np.ndarray:
    return np.asarray([label is not None for label in tables.examples[split]["bought"].to_pylist()])


def test_each_task_is_measured_where_it_has_labels(finished, tables):
    splits = json.loads((finished / "run" / "result.json").read_text())["splits"]
    assert splits["valid"]["bought/rows"] == known(tables, "valid").sum() < 60
    assert splits["valid"]["bought/auc"] is not None
    assert splits["test"]["bought/ne"] is None and "has a label" in splits["test"]["bought/undefined"]
    for split in ("valid", "test"):
        assert splits[split]["rated/rows"] == 60 and splits[split]["rated/ne"] is not None
    lines = [line for line in json_lines.read(finished / "run" / "metrics.jsonl") if line["kind"] == "train"]
    assert all(line["skipped_steps"] == 0 for line in lines)
    assert all(line[f"{task}/loss"] is not None for line in lines for task in ("bought", "rated"))


def test_a_prediction_without_label_has_an_empty_cell(finished, tables, tmp_path):
    out = tmp_path / "predictions.csv"
    arguments = ["--run.dir", str(finished / "run"), "--no-progress", "--split", "valid", "--predictions", str(out)]
    assert evaluate.main(arguments) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = tables.examples["valid"]["bought"].to_pylist()
    assert [row["label_bought"] for row in rows] == ["" if x is None else str(float(x)) for x in labels]
    assert all(0 < float(row["prediction_bought"]) < 1 for row in rows)


def test_the_baseline_takes_the_rows_that_have_a_label(finished, tables):
    data = DataConfig(root=finished / "data", cache=finished / "cache", options=ParquetConfig())
    arguments = logistic_regression.Arguments(data=data, c=(0.1,), max_events=5, splits=("train",))
    result = logistic_regression.run(arguments)["splits"]["train"]
    assert result["rows"] == known(tables, "train").sum()
    assert result["gauc"] is not None and 0 < result["logloss"] < 1
