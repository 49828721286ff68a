"""docs/own_data.md is run: its example is a valid data set, and what it says is printed is printed."""

import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kunlun_jax.data import import_csv
from kunlun_jax.data.parquet.source import open_dataset
from kunlun_jax.data.parquet.validate import main
from kunlun_jax.data.pipeline import LoaderConfig, make_loader

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "own_data.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The example has been run here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUNLUN_CACHE", str(tmp_path / "cache"))
    (example,) = blocks("python")
    exec(compile(example, "docs/own_data.md", "exec"), {"__name__": "own_data"})
    return tmp_path / "my_data"


def test_the_example_is_valid_and_the_summary_is_as_shown(folder, capsys):
    assert main(["my_data"]) == 0
    printed = capsys.readouterr().out
    shown = blocks("text")[0]
    hidden = re.compile(r"fingerprint [0-9a-f]{16}")  # the bytes of Parquet depend on its writer's version
    assert hidden.sub("", printed) == hidden.sub("", shown)


def test_the_example_can_be_loaded(folder):
    dataset = open_dataset(folder)
    with make_loader(dataset, "train", LoaderConfig(batch_size=16)) as loader:
        batches = list(loader)
    assert [int(counts.examples) for _, counts in batches] == [16, 16, 16, 12]
    assert sum(counts.events["click"] for _, counts in batches) > 0
    assert dataset.p_train == (0.25,)


def test_the_log_becomes_a_data_set_by_the_command_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUNLUN_CACHE", str(tmp_path / "cache"))
    (log,) = blocks("csv")
    Path("log.csv").write_text(log)
    command = PAGE.split("python -m kunlun_jax.data.import_csv ")[1].split("\npython -m")[0]
    assert import_csv.main(shlex.split(command.replace("\\\n", " "))) == 0
    assert len(open_dataset(Path("my_shop")).source) == log.count("\n") - 1 == 12


def test_errors_look_as_shown(folder, capsys):
    path = folder / "examples" / "train" / "part-0000.parquet"
    table = pq.read_table(path).to_pydict()
    del table["tags"]
    table["item"][7] = table["item"][30] = -1
    table["price"][12] = float("nan")
    pq.write_table(pa.table(table), path)
    path = folder / "events" / "click" / "part-0000.parquet"
    table = pq.read_table(path).to_pydict()
    times = table["time_ms"]
    times[2], times[3] = times[3], times[2]
    table["time_ms"] = times
    pq.write_table(pa.table(table), path)
    assert main(["my_data"]) == 1
    assert capsys.readouterr().out == blocks("text")[1]
