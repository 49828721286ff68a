"""experiments.evaluate on a run over a small prepared data set with two tasks."""

import csv
import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import evaluate, train
from kunlun_jax.training import json_lines
from tests.data.parquet.parquet_sets import random_tables
from tests.experiments.tiny import ANY_MODEL


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with the data (``data``) and a run on it (``run``)."""
    folder = tmp_path_factory.mktemp("evaluate")
    random_tables().write(folder / "data")
    more = ["--model.skip-events", "like", "--loader.batch-size", "16", "--run.eval-splits", "valid"]
    where = [
        "--data.root",
        str(folder / "data"),
        "--data.cache",
        str(folder / "cache"),
        "--run.dir",
        str(folder / "run"),
    ]
    assert train.main([*ANY_MODEL, *more, *where]) == 0
    return folder


def run_evaluate(folder: Path, *more: str) -> int:
    return evaluate.main(["--run.dir", str(folder / "run"), "--no-progress", *more])


def test_predictions_have_keys_label_and_prediction_of_every_row_in_order(finished, tmp_path, capsys):
    out = tmp_path / "predictions.csv"
    assert run_evaluate(finished, "--split", "test", "--predictions", str(out)) == 0
    printed = capsys.readouterr()
    metrics = json.loads(printed.out)
    assert "60 predictions in" in printed.err
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "user_name", "request", "label_bought", "prediction_bought", "label_rated", "prediction_rated"
    ]  # fmt: skip
    expected = random_tables().examples["test"]
    assert [row["user_name"] for row in rows] == expected["user_name"]
    assert [int(row["request"]) for row in rows] == expected["request"].tolist()
    np.testing.assert_array_equal([float(row["label_bought"]) for row in rows], expected["bought"])
    np.testing.assert_array_equal(np.float32([row["label_rated"] for row in rows]), expected["rated"])

    assert metrics["split"] == "test" and metrics["step"] == 4 and metrics["examples"] == 60
    for task in ("bought", "rated"):
        p = np.asarray([float(row[f"prediction_{task}"]) for row in rows])
        y = np.asarray(expected[task], np.float64)
        losses = -(y * np.log(p) + (1 - y) * np.log1p(-p))
        assert metrics[f"{task}/logloss"] == pytest.approx(np.average(losses, weights=expected["weight"]), rel=1e-5)


def test_a_full_disk_exits_2_and_leaves_no_half_of_the_predictions(finished, tmp_path, monkeypatch, capsys):
    out = tmp_path / "predictions.csv"

    class Full:
        """Takes the names of the columns and then no rows."""

        def __init__(self, file):
            self.file = file

        def writerow(self, row):
            self.file.write(",".join(row))
            self.file.flush()

        def writerows(self, rows):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(evaluate.csv, "writer", Full)
    for before in ({}, {"predictions.csv": "old"}):
        for name, text in before.items():
            (tmp_path / name).write_text(text)
        assert run_evaluate(finished, "--predictions", str(out)) == 2
        printed = capsys.readouterr()
        assert printed.err.endswith(f"error: {out} is not written: [Errno 28] No space left on device\n")
        assert json.loads(printed.out)["examples"] == 60  # the metrics are told all the same
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_predictions_go_where_a_link_points_and_into_a_pipe(finished, tmp_path):
    (tmp_path / "link.csv").symlink_to(tmp_path / "target.csv")
    assert run_evaluate(finished, "--predictions", str(tmp_path / "link.csv")) == 0
    assert (tmp_path / "link.csv").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    with open(os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)) as pipe:  # it holds all of them
        assert run_evaluate(finished, "--predictions", str(tmp_path / "pipe")) == 0
        text = pipe.read()
    assert text == (tmp_path / "target.csv").read_text() and len(text.splitlines()) == 61
    assert {path.name for path in tmp_path.iterdir()} == {"link.csv", "target.csv", "pipe"}


def test_the_same_data_in_another_place_gives_the_metrics_of_the_run(finished, tmp_path, capsys):
    shutil.copytree(finished / "data", tmp_path / "moved")
    assert run_evaluate(finished, "--data.root", str(tmp_path / "moved"), "--split", "valid") == 0
    metrics = json.loads(capsys.readouterr().out)
    result = json.loads((finished / "run" / "result.json").read_text())["splits"]["valid"]
    names = [name for name in result if "/" in name and name.split("/")[0] in ("bought", "rated")]
    assert len(names) > 10
    assert {name: metrics[name] for name in names} == {name: result[name] for name in names}


def test_ids_beyond_the_vocabulary_are_counted_in_the_metrics(finished):
    lines = json_lines.read(finished / "run" / "metrics.jsonl")
    tables = random_tables()
    trained = [line for line in lines if line["kind"] == "train"]
    (evaluated,) = (line for line in lines if line["kind"] == "eval")
    assert [(line["step"], line["filled"]) for line in trained] == [(3, 0), (4, 4)]
    for split, counted in (("train", trained), ("valid", [evaluated])):
        # The table of items holds 7 ids and spreads others by a hash; that of users holds 5 and has a row for others.
        for feature, size in (("item", 7), ("user", 5)):
            beyond = sum(line.get(f"beyond_vocabulary/{feature}", 0) for line in counted)
            assert beyond == np.sum(np.asarray(tables.examples[split][feature]) >= size) > 0
        assert all(line["beyond_vocabulary/click.item"] > 0 for line in counted)


def test_an_unknown_split_exits_2_and_names_those_there_are(finished, capsys):
    assert run_evaluate(finished, "--split", "nights") == 2
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith("error: no split 'nights' in data set 'toy'; it has ['test', 'train', 'valid']")
    )


def test_a_folder_that_is_no_run_exits_2(tmp_path, capsys):
    assert evaluate.main(["--run.dir", str(tmp_path)]) == 2
    assert "config.json: no such file; --run.dir must name a run directory" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_exits_2(finished, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    shutil.copy(finished / "run" / "config.json", tmp_path / "run")
    assert run_evaluate(tmp_path) == 2
    assert "holds no finished checkpoint; train first" in capsys.readouterr().err


def test_other_data_is_refused(finished, tmp_path, capsys):
    other = random_tables(seed=1).write(tmp_path / "other")
    assert run_evaluate(finished, "--data.root", str(other)) == 2
    error = capsys.readouterr().err
    stored = json.loads((finished / "run" / "config.json").read_text())["data"]["fingerprint"]
    assert f"was trained on data {stored}, but the data there now is" in error
