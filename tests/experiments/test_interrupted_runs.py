"""Runs that are cut off anywhere and go on, against one that was not."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from experiments import evaluate, train
from kunlun_jax.training import json_lines
from kunlun_jax.training.run import prepare
from kunlun_jax.training.stop import Stop
from tests import processes
from tests.experiments.run_folder import checkpoints, lasting
from tests.experiments.tiny import FLAGS
from tests.training.tiny import tiny_config

REPOSITORY = Path(__file__).resolve().parents[2]
ORDER = ("--loader.shuffle", "global", "--run.epochs", "2", "--run.max-steps", "30", "--run.eval-every", "8")
ORDER += ("--run.fresh-tables",)
STEPS = 30
FIRST_PASS = 19


@pytest.fixture(scope="module")
def command():
    """Starts experiments.train in a process of its own; all of them share what XLA compiled, by tests/conftest.py."""

    def start(directory: Path, *more: str, point: str | None = None) -> processes.Process:
        module = ["experiments.train"] if point is None else ["tests.experiments.interrupted", point]
        return processes.Process(
            [sys.executable, "-m", *module, *FLAGS, *ORDER, "--run.dir", str(directory), *more],
            cwd=REPOSITORY,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )

    return start


def finish(process: processes.Process, code: int) -> str:
    """Waits; returns what the process printed, after a look at its exit code."""
    done = process.finish()
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory) -> Path:
    """The run directory of a run that nobody disturbed."""
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(command(directory), 0)
    lines = json_lines.read(directory / "metrics.jsonl")
    assert [(line["kind"], line["step"]) for line in lines] == sorted(
        [("train", step) for step in range(3, STEPS + 1, 3)]
        + [("eval", step) for step in range(8, STEPS, 8)]
        + [("peak", STEPS)]
        + [("eval", STEPS)] * 2,
        key=lambda item: (item[1], ["train", "peak", "eval"].index(item[0])),
    )
    return directory


def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(command, undisturbed, tmp_path, capsys):
    directory = tmp_path / "run"
    shutil.copytree(undisturbed, directory)
    before, newest = checkpoints(directory)
    assert newest == STEPS
    largest = max((directory / "checkpoints" / str(newest)).rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 4
    largest.write_bytes(bytes(data))

    assert evaluate.main(["--run.dir", str(directory), "--split", "valid", "--no-progress"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == before

    done = command(directory).finish()
    assert done.returncode == 0
    assert f"checkpoints/{newest} is not used" in done.stderr and "was changed" in done.stderr
    assert lasting(directory) == lasting(undisturbed)
    assert checkpoints(directory) == [before, newest]


@pytest.fixture(scope="module")
def killed_early(command, tmp_path_factory) -> Path:
    """The run directory of one that was killed again and again, each time at another kind of moment."""
    directory = tmp_path_factory.mktemp("killed") / "run"
    finish(command(directory, point="step:2"), -signal.SIGKILL)
    assert checkpoints(directory) == [] and json_lines.read(directory / "metrics.jsonl") == []

    finish(command(directory, point="line:6"), -signal.SIGKILL)
    assert not (directory / "metrics.jsonl").read_text().endswith("\n")

    finish(command(directory, point="commit:8"), -signal.SIGKILL)
    assert checkpoints(directory) == [4]
    assert [p for p in (directory / "checkpoints").iterdir() if p.name.startswith("8.")], "no half-written checkpoint"
    return directory


@pytest.fixture(scope="module")
def killed(command, killed_early) -> Path:
    """The same, killed at two more moments, and then at its end."""
    directory = killed_early
    with command(directory) as from_outside:
        while not any(line["step"] >= 12 for line in json_lines.read(directory / "metrics.jsonl")):
            assert from_outside.poll() is None, "ended before it was killed"
            time.sleep(0.002)
        from_outside.kill()
        finish(from_outside, -signal.SIGKILL)
    assert STEPS not in checkpoints(directory)

    finish(command(directory, point="eval:test"), -signal.SIGKILL)
    ended = [line.get("split") for line in json_lines.read(directory / "metrics.jsonl") if line["step"] == STEPS]
    assert "valid" in ended and "test" not in ended
    finish(command(directory), 0)
    return directory


# The first two tests take what the fixtures take, each a part of it.
def test_an_undisturbed_run_ends(undisturbed):
    assert checkpoints(undisturbed)[-1] == STEPS


def test_a_run_that_was_killed_early_has_what_it_saved(killed_early):
    assert checkpoints(killed_early)


def test_killed_run_has_the_metrics_of_an_undisturbed_one(undisturbed, killed):
    assert lasting(killed) == lasting(undisturbed)
    expected, result = (json.loads((d / "result.json").read_text()) for d in (undisturbed, killed))
    for item in (expected, result):
        assert 0 < item["mfu"] < 1
        for name in ("examples_per_second", "mfu"):
            del item[name]
        del item["mfu_of"]["peak"]["flops_per_second"]
        for split in item["splits"].values():
            del split["seconds"]
    assert result == expected


def test_killed_run_makes_the_predictions_of_an_undisturbed_one(undisturbed, killed, tmp_path, capsys):
    for name, directory in (("undisturbed", undisturbed), ("killed", killed)):
        out = str(tmp_path / f"{name}.csv")
        assert (
            evaluate.main(["--run.dir", str(directory), "--split", "test", "--predictions", out, "--no-progress"]) == 0
        )
    expected = (tmp_path / "undisturbed.csv").read_bytes()
    assert (tmp_path / "killed.csv").read_bytes() == expected
    assert len(expected.splitlines()) == 71
    logged = json.loads((undisturbed / "result.json").read_text())["splits"]["test"]
    printed = json.loads(capsys.readouterr().out.split("\n{")[0].removesuffix("\n"))
    assert printed["step"] == STEPS and printed["rows"] == logged["rows"] == 70
    assert printed["auc"] == pytest.approx(logged["auc"], abs=1e-6)


def test_signals_save_and_the_same_command_goes_on(command, undisturbed, tmp_path):
    directory = tmp_path / "run"
    points = ("term:7", "SIGTERM", 7), ("int:19", "SIGINT", FIRST_PASS), ("evaluated:30", "SIGTERM", STEPS)
    for point, name, step in points:
        printed = finish(command(directory, point=point), 0)
        assert f"{name}: saved after {step} of {STEPS} steps; the same command goes on there" in printed
        assert checkpoints(directory)[-1] == step
    finish(command(directory), 0)
    assert lasting(directory) == lasting(undisturbed)


def test_another_config_is_refused(undisturbed, capsys):
    before = (undisturbed / "metrics.jsonl").read_bytes()
    more = ["--optimizer.learning-rate", "0.5", "--data.seed", "3"]
    assert train.main([*FLAGS, *ORDER, "--run.dir", str(undisturbed), *more]) == 2
    error = capsys.readouterr().err
    assert f"config.optimizer.learning_rate: there {tiny_config().optimizer.learning_rate}, now 0.5" in error
    assert "config.data.options.seed: there 0, now 3" in error
    assert "data.fingerprint" in error
    assert "another --run.dir" in error
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


def test_finished_run_is_not_trained_again(undisturbed, capsys, monkeypatch):
    before = {name: (undisturbed / name).read_bytes() for name in ("metrics.jsonl", "result.json", "env.json")}

    def refuse(*_):
        raise AssertionError("a finished run was trained")

    monkeypatch.setattr("kunlun_jax.training.step.Trainer._step", refuse)
    assert train.main([*FLAGS, *ORDER, "--run.dir", str(undisturbed)]) == 0
    result = json.loads(before["result.json"])
    printed = capsys.readouterr().out
    assert f"NE {result['splits']['test']['ne']:.4f}" in printed
    assert f"floor of the data {result['splits']['test']['floor']:.4f}" in printed
    assert str(undisturbed / "learning_curve.png") in printed
    assert {name: (undisturbed / name).read_bytes() for name in before} == before


def test_prepare_refuses_a_split_that_is_not_there():
    with pytest.raises(KeyError, match=r"no split 'nights'.*valid"):
        prepare(tiny_config("--run.eval-splits", "nights"))


def test_a_second_interrupt_ends_at_once():
    code = "import signal, kunlun_jax.training.stop as s\nwith s.Stop():\n  [signal.raise_signal(2) for _ in range(2)]"
    done = processes.Process([sys.executable, "-c", code], cwd=REPOSITORY, env=dict(os.environ)).finish()
    assert done.returncode == 130 and "the last checkpoint stays" in done.stderr


def test_stop_gives_the_handlers_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Stop() as stop:
        assert stop.signal is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == "SIGTERM"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
