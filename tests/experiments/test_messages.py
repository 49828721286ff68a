"""What goes wrong outside the program is one line that names it, and exit code 2; never a traceback."""

import errno
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments import evaluate, train
from tests.experiments.tiny import FLAGS

NOWHERE = "/proc/nowhere"
"""A folder that nobody can make, root included."""


def one_line(capsys, *parts: str) -> None:
    text = capsys.readouterr().err
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in text, text
    assert all(part in errors[0] for part in parts), (errors, parts)


@pytest.mark.parametrize("flags", [("--run.dir", NOWHERE), ("--run.dir", f"{NOWHERE}/run")])
def test_a_run_directory_that_cannot_be_made(flags, capsys):
    assert train.main([*FLAGS, *flags]) == 2
    one_line(capsys, NOWHERE)


def own_data(folder: Path) -> Path:
    """A folder that looks like prepared data, with what is no file in it."""
    (folder / "examples" / "train").mkdir(parents=True)
    schema = {"name": "own", "categorical": [{"name": "user", "size": 3}]}
    (folder / "schema.json").write_text(json.dumps(schema))
    return folder


def test_data_that_is_no_file(tmp_path, capsys):
    root = own_data(tmp_path / "data")
    flags = ("kunlun/small", "--data.root", str(root), "--data.cache", str(tmp_path / "cache"))
    (root / "examples" / "train" / "part.parquet").symlink_to(tmp_path / "gone.parquet")
    assert train.main([*flags, "--run.dir", str(tmp_path / "run")]) == 2
    one_line(capsys, "train/part.parquet: it is a link to nothing")
    (root / "examples" / "train" / "part.parquet").unlink()
    (root / "examples" / "train" / "x.parquet").mkdir()
    assert train.main([*flags, "--run.dir", str(tmp_path / "run")]) == 2
    one_line(capsys, "train/x.parquet: no *.parquet file in this folder")


def test_a_cache_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    root = own_data(tmp_path / "data")
    columns = {"request_time_ms": [10**12, 10**12 + 1], "user": [0, 1], "label": [0, 1]}
    pq.write_table(pa.table(columns), root / "examples" / "train" / "part.parquet")
    flags = ("kunlun/small", "--data.root", str(root), "--run.dir", str(tmp_path / "run"))
    assert train.main([*flags, "--data.cache", NOWHERE]) == 2
    one_line(capsys, NOWHERE)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kunlun_jax.data.parquet.source.write_columns", full)
    assert train.main([*flags, "--data.cache", str(tmp_path / "cache")]) == 2
    one_line(capsys, "No space left on device", str(tmp_path / "cache"))
    assert list((tmp_path / "cache").glob("[!x]*")) == []


def test_predictions_into_a_folder_that_is_not_there_are_refused_first(tmp_path, capsys):
    path = tmp_path / "nodir" / "x.csv"
    assert evaluate.main(["--run.dir", str(tmp_path), "--predictions", str(path)]) == 2
    one_line(capsys, str(path))


@pytest.mark.parametrize("text", ["", '{"config": {', "\x00\x00"])
def test_a_config_that_was_cut_off(text, tmp_path, capsys):
    (tmp_path / "config.json").write_text(text)
    assert evaluate.main(["--run.dir", str(tmp_path)]) == 2
    one_line(capsys, f"{tmp_path / 'config.json'} is not valid JSON", "line 1 column")
    assert train.main([*FLAGS, "--run.dir", str(tmp_path)]) == 2
    one_line(capsys, f"{tmp_path / 'config.json'} is not valid JSON")


def test_a_run_that_is_not_there(tmp_path, capsys):
    assert evaluate.main(["--run.dir", str(tmp_path / "none")]) == 2
    one_line(capsys, "none/config.json: no such file")


def test_flags_are_named_as_they_are_written(capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["kunlun/small", "--loader.max-events", "-5"])
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert "loader.max_events is -5" in text and "dummy" not in text
    assert len({len(line) for line in text.splitlines()}) == 1, "the frame is whole"
