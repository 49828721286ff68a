import json
import os
import shutil
from pathlib import Path

import pytest

from kunlun_jax.training import json_lines, run_directory
from kunlun_jax.training.run_directory import (
    ConfigMismatch,
    RunDirectory,
    RunInUse,
    diff,
    write_atomic,
)

CONFIG = {"config": {"data": {"root": "/a"}, "run": {"seed": 0, "dir": None}, "model": {"hidden": [8]}}, "steps": 10}


def changed(**paths) -> dict:
    config = json.loads(json.dumps(CONFIG))
    for path, value in paths.items():
        *outer, last = path.split("__")
        node = config
        for name in outer:
            node = node[name]
        node[last] = value
    return config


def test_a_new_directory_gets_config_and_environment(tmp_path):
    directory = RunDirectory(tmp_path / "deep" / "run", CONFIG)
    assert json.loads((directory.path / "config.json").read_text()) == CONFIG
    stored = json.loads((directory.path / "env.json").read_text())
    assert stored["versions"]["jax"] and stored["backend"] == "cpu"
    assert sorted(p.name for p in directory.path.iterdir()) == ["config.json", "env.json"]


def test_the_same_config_opens_it_again_and_where_things_are_may_change(tmp_path):
    RunDirectory(tmp_path, CONFIG)
    first = (tmp_path / "config.json").read_bytes()
    RunDirectory(tmp_path, CONFIG)
    RunDirectory(tmp_path, changed(config__data__root="/b", config__run__dir="elsewhere"))
    assert (tmp_path / "config.json").read_bytes() == first


def test_another_config_is_refused_with_each_difference(tmp_path):
    RunDirectory(tmp_path, CONFIG)
    other = changed(config__run__seed=1, config__model__hidden=[8, 8], steps=20)
    del other["config"]["data"]
    with pytest.raises(ConfigMismatch) as raised:
        RunDirectory(tmp_path, other)
    message = str(raised.value)
    assert str(tmp_path / "config.json") in message
    for line in (
        "config.run.seed: there 0, now 1",
        "config.model.hidden: there [8], now [8, 8]",
        "steps: there 10, now 20",
        "config.data: there {'root': '/a'}, now '(absent)'",
    ):
        assert f"\n  {line}" in message


def test_one_process_at_a_time(tmp_path):
    directory = RunDirectory(tmp_path, CONFIG)
    in_use = pytest.raises(RunInUse, match=rf"in use by process {os.getpid()} on \S+; .*--run\.dir")
    with directory.locked(), in_use, RunDirectory(tmp_path, CONFIG).locked():
        pass
    with pytest.raises(ZeroDivisionError), directory.locked():
        raise ZeroDivisionError
    with directory.locked():
        pass


def test_who_packs_batches_and_on_what_devices_may_change(tmp_path):
    config = {"config": {"loader": {"threads": 1, "batch_size": 8}, "mesh": {"data": 1}}, "capacity": {"click": 128}}
    RunDirectory(tmp_path, config)
    other = {"config": {"loader": {"threads": 4, "batch_size": 8}, "mesh": {"data": 8}}, "capacity": {"click": 256}}
    RunDirectory(tmp_path, other)
    del config["config"]["mesh"]  # of a run from before there were meshes
    RunDirectory(tmp_path, config)
    other["config"]["loader"]["batch_size"] = 16
    with pytest.raises(ConfigMismatch, match=r"config\.loader\.batch_size: there 8, now 16"):
        RunDirectory(tmp_path, other)


def test_a_kill_between_the_two_files_leaves_no_run_without_environment(tmp_path, monkeypatch):
    written = []

    def killed(path: Path, text: str) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path.name)
        write_atomic(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(run_directory, "write_atomic", killed)
        with pytest.raises(KeyboardInterrupt):
            RunDirectory(tmp_path, CONFIG)
    RunDirectory(tmp_path, CONFIG)
    assert (tmp_path / "config.json").exists() and (tmp_path / "env.json").exists()


def test_lines_are_appended_and_read(tmp_path):
    directory = RunDirectory(tmp_path, CONFIG)
    assert json_lines.read(directory.metrics) == []
    directory.log(kind="train", step=1, loss=0.1 + 0.2)
    directory.log(kind="train", step=2, loss=None)
    assert json_lines.read(directory.metrics) == [
        {"kind": "train", "step": 1, "loss": 0.1 + 0.2},
        {"kind": "train", "step": 2, "loss": None},
    ]


def test_truncation_drops_later_lines_and_a_line_that_was_cut_short(tmp_path):
    directory = RunDirectory(tmp_path, CONFIG)
    for step in (2, 4, 6):
        directory.log(kind="train", step=step, loss=1 / 3)
    before = directory.metrics.read_text()
    with directory.metrics.open("a") as file:
        file.write('{"kind": "train", "step": 8, "lo')
    assert [line["step"] for line in json_lines.read(directory.metrics)] == [2, 4, 6]
    directory.truncate_lines(6)
    assert directory.metrics.read_text() == before
    directory.truncate_lines(5)
    assert directory.metrics.read_text() == "".join(before.splitlines(keepends=True)[:2])
    directory.truncate_lines(0)
    assert directory.metrics.read_text() == ""


def test_what_is_not_finite_is_not_written(tmp_path):
    directory = RunDirectory(tmp_path, CONFIG)
    for value in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            directory.log(kind="train", step=1, loss=value)
    assert not directory.metrics.exists() or directory.metrics.read_text() == ""


def test_lines_of_skipped_steps_are_cut_back_as_well(tmp_path):
    directory = RunDirectory(tmp_path, CONFIG)
    directory.truncate_lines(0)
    assert not directory.skipped.exists()
    directory.log_skipped([{"step": 3, "skipped": 2}, {"step": 3, "skipped": 3}])
    before = directory.skipped.read_text()
    directory.log_skipped([{"step": 6, "skipped": 4}])
    directory.truncate_lines(4)
    assert directory.skipped.read_text() == before


def test_atomic_writing_leaves_the_old_text_or_the_new(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "old")

    def fail(_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            write_atomic(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_atomic(path, "new")
    assert path.read_text() == "new"


def test_diff_names_the_leaves():
    assert diff({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3, "d": 4}}) == [
        ("a.c", 2, 3),
        ("a.d", "(absent)", 4),
    ]
    assert diff({"a": [1, 2]}, {"a": [1, 2]}) == []


def test_metrics_that_lost_their_end_are_told(tmp_path, caplog):
    directory = RunDirectory(tmp_path / "run", {})
    for step in (5, 10, 15):
        directory.log(kind="train", step=step)
    directory.log(kind="eval", step=16, split="valid")
    for step in (0, 4, 10, 15, 19):
        directory.warn_of_lost_lines(step, 5)
    assert caplog.messages == []
    directory.warn_of_lost_lines(20, 5)
    (message,) = caplog.messages
    assert f"{directory.metrics} ends at step 15, and the run goes on at step 20" in message


def test_a_folder_is_kept_once(tmp_path):
    directory = RunDirectory(tmp_path / "run", {})
    directory.keep(None)
    learned = tmp_path / "cache" / "learned"
    learned.mkdir(parents=True)
    (learned / "vocabulary.0.parquet").write_bytes(b"first")
    directory.keep(learned)
    (learned / "vocabulary.0.parquet").write_bytes(b"later")
    directory.keep(learned)
    assert (directory.path / "learned" / "vocabulary.0.parquet").read_bytes() == b"first"
    assert {path.name for path in directory.path.iterdir()} == {"config.json", "env.json", "learned"}


def test_a_kill_while_a_folder_is_copied_leaves_nothing_in_the_way(tmp_path, monkeypatch):
    directory = RunDirectory(tmp_path / "run", {})
    learned = tmp_path / "cache" / "learned"
    learned.mkdir(parents=True)
    (learned / "vocabulary.0.parquet").write_bytes(b"whole")

    def killed(source: Path, target: Path) -> None:
        target.mkdir()
        (target / "vocabulary.0.parquet").write_bytes(b"wh")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", killed)
        with pytest.raises(KeyboardInterrupt):
            directory.keep(learned)
    directory.keep(learned)
    assert (directory.path / "learned" / "vocabulary.0.parquet").read_bytes() == b"whole"
    assert {path.name for path in directory.path.iterdir()} == {"config.json", "env.json", "learned"}
