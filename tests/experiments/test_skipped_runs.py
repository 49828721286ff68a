"""Runs with steps that are not finite: what they write, when they end, and what they leave."""

import dataclasses
import json
import logging
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import train
from kunlun_jax.data.pipeline import Loader
from kunlun_jax.training import json_lines, optimizer
from kunlun_jax.training.step import Trainer
from tests.experiments.run_folder import checkpoints, lasting
from tests.experiments.tiny import ANY

ROW = 136
"""Of the training split: its batch of 32 is that of step 5, the second of a log line of 3."""
STEPS = 19


def spoil(patch: pytest.MonkeyPatch, *rows: int) -> None:
    """Gives some examples, by their rows in the data set, a dense feature that is no number."""
    load = Loader.__next__

    def spoilt(self: Loader) -> Any:
        batch, counts = load(self)
        dense = batch.dense.copy()
        dense[np.isin(batch.row, rows), 0] = np.nan
        return dataclasses.replace(batch, dense=dense), counts

    patch.setattr(Loader, "__next__", spoilt)


def strict(path: Path) -> list[Any]:
    """The values of a JSON lines file, which holds no NaN and no infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{path} holds {name}")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def one_bad(tmp_path_factory) -> Path:
    """The directory of a run with one bad example."""
    directory = tmp_path_factory.mktemp("bad") / "run"
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, ROW)
        assert train.main([*ANY, "--run.dir", str(directory)]) == 0
    return directory


def test_one_bad_example_costs_one_step(one_bad):
    lines = strict(one_bad / "metrics.jsonl")
    counts = {line["step"]: line["skipped_steps"] for line in lines if line["kind"] == "train"}
    assert counts == {step: int(step == 6) for step in (3, 6, 9, 12, 15, 18, STEPS)}
    assert all(line["ne"] is not None for line in lines if "ne" in line)
    assert json.loads((one_bad / "result.json").read_text())["splits"]["test"]["ne"] < 1.1
    (line,) = strict(one_bad / "skipped.jsonl")
    assert (line["step"], line["skipped"], line["not_finite"]) == (6, 5, 1)
    assert line["first"]["rows"] == [ROW] and line["examples"]["rows"] == list(range(128, 160))
    assert set(line["first"]["keys"]) == {"user_id", "item_id", "request_time_ms"}
    for name, (value,) in line["first"]["keys"].items():
        assert line["examples"]["keys"][name][ROW - 128] == value


def test_a_restart_in_the_middle_of_a_log_line_writes_the_same(one_bad, tmp_path, monkeypatch, caplog):
    """Stopped right after the skipped step, and again after its line; each time it goes on from a checkpoint before."""
    directory, step = tmp_path / "run", Trainer.step
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "kunlun_jax.training.log"):
        spoil(patch, ROW)
        for last in (5, 7, STEPS):
            patch.setattr(Trainer, "step", stopping(step, last))
            assert train.main([*ANY, "--run.dir", str(directory)]) == 0
            if last < STEPS:
                assert checkpoints(directory)[-1] == last
    assert lasting(directory) == lasting(one_bad)
    assert (directory / "skipped.jsonl").read_bytes() == (one_bad / "skipped.jsonl").read_bytes()
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("step 5 was skipped") and told.endswith(
        f"their examples are in {directory / 'skipped.jsonl'}"
    )


def stopping(step: Any, last: int) -> Any:
    def stop(self: Trainer, state: Any, batch: Any) -> Any:
        if int(np.asarray(state.step)) == last - 1 and last < STEPS:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, state, batch)

    return stop


def test_a_rate_far_too_high_ends_the_run_and_leaves_a_sound_checkpoint(tmp_path, monkeypatch, capsys):
    """From step 6 on the rate is 1e30. Every second step is saved, two checkpoints are kept, and five skips end it."""

    def schedule(config: optimizer.OptimizerConfig, steps: int) -> Any:
        return lambda count: np.float32(1e-3) + np.float32(1e30) * (count >= 5)

    monkeypatch.setattr(optimizer, "dense_schedule", schedule)
    directory = tmp_path / "run"
    flags = ["--run.max-skipped-streak", "5", "--run.checkpoint-every", "2", "--optimizer.weight-decay", "0"]
    assert train.main([*ANY, *flags, "--run.dir", str(directory)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    found = re.fullmatch(
        r"error: step (\d+): the last (\d+) steps were skipped, since loss or gradient was not finite, and "
        r"run\.max_skipped_streak is 5; what was saved before them stays\. Lower optimizer\.learning_rate .*"
        r"optimizer\.clip_norm, or have --run\.debug-nans name the layer",
        error,
    )
    assert found, error
    step, streak = map(int, found.groups())
    assert 5 <= streak == step - 6 and step < STEPS
    assert checkpoints(directory) == [4, 6]  # the latter is finite, but what it leads to is not
    lines = strict(directory / "metrics.jsonl")
    assert [line["skipped_steps"] for line in lines][:3] == [0, 0, 3]
    assert lines[2]["loss"] is None and lines[2]["calibration"] is None
    assert [line["skipped"] for line in strict(directory / "skipped.jsonl")] == list(range(7, step + 1))
    assert not (directory / "result.json").exists()
    # The same run, with the flag that names the layer, goes on from what was saved.
    assert train.main([*ANY, *flags, "--run.debug-nans", "--run.dir", str(directory)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    where = r"error: step 7: the first that is not finite, forward: (output of \S+|the logits|the loss)"
    assert re.fullmatch(where, error), error


def test_logits_of_an_evaluation_that_are_not_finite_are_named_and_the_rest_stays(tmp_path, monkeypatch, capsys):
    directory = tmp_path / "run"
    spoil(monkeypatch, 608 + 7, 608 + 9)  # of the split "valid", whose rows follow those of "train"
    assert train.main([*ANY, "--run.dir", str(directory)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        "error: split 'valid': the logits of 2 of 70 examples are not finite, first of row 7 (user_id "
    )
    lines = strict(directory / "metrics.jsonl")
    assert [(line["kind"], line["step"], line.get("split")) for line in lines[-2:]] == [
        ("peak", STEPS, None),
        ("eval", STEPS, "test"),
    ]
    assert checkpoints(directory)[-1] == STEPS


def test_a_run_ends_at_the_first_such_step_if_asked_to(tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, ROW)
    assert train.main([*ANY, "--run.debug-nans", "--run.dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "error: step 5: the first that is not finite, forward: the batch's dense features"
    assert [line["step"] for line in json_lines.read(tmp_path / "run" / "metrics.jsonl")] == [3]
