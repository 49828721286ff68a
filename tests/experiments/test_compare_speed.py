"""`experiments.compare_speed`: what it measures, what is not measured again, and what its table makes of numbers."""

import json

import pytest

from experiments import compare_speed
from experiments.compare import Comparison
from experiments.step_times import RunSteps
from tests.experiments.tiny import ANY

COMPARISON = Comparison(
    rows={"one": " ".join(ANY), "other": " ".join((*ANY, "--model.gate-hidden", "16"))},
    others={"constant": ("one", lambda config, seed: {})},
    search=("--optimizer.learning-rate 1e-3", "--optimizer.learning-rate 2e-3"),
)


@pytest.fixture
def call(tmp_path, monkeypatch):
    """The command on this comparison; its rows."""
    monkeypatch.setattr(compare_speed, "comparison_of", lambda name: COMPARISON)
    monkeypatch.setattr(compare_speed, "keep_compiled", lambda cache: None)
    monkeypatch.setattr("kunlun_jax.mfu.MEASURED_SIZE", 64)
    out = tmp_path / "toy_speed.json"

    def call(*flags):
        assert compare_speed.main(["toy", "--dirty", "--out", str(out), *flags]) == 0
        return json.loads(out.read_text())["rows"]

    return call


@pytest.fixture
def made(monkeypatch):
    """Subjects that take no time; the models that were made of them."""
    made = []

    class Fake(RunSteps):
        def __init__(self, config, dataset, batches):
            (width,) = vars(config.model)["gate_hidden"]
            made.append((width, batches))
            self.seconds, self.compile_seconds, self.batch_size = [], 0.0, 32
            self.flops, self.step = 1e4 * width, 4.0 / width

        def run(self, steps):
            return self.step

    monkeypatch.setattr(compare_speed, "RunSteps", Fake)
    return made


def test_systems_are_measured_once_and_together(call, made, monkeypatch, tmp_path, capsys):
    rows = call("--steps", "3")
    assert made == [(8, 3), (16, 3)] and [row["name"] for row in rows] == ["one", "other"]
    assert all(row["environment"]["commit"] and len(row["step_seconds_all"]) == 7 for row in rows)
    assert call() == rows and len(made) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| | examples/s | x the first's | MFU | forward FLOPs |"
    assert lines[2].startswith("| one | 64 | 1.00 | ") and lines[2].endswith(" | 80,000 |")
    assert lines[3].startswith("| other | 128 | 2.00 | ") and lines[3].endswith(" | 160,000 |")
    assert (tmp_path / "toy_speed.png").stat().st_size > 5_000

    # Flags of one have changed: its row is shown no more, and all take turns again.
    changed = Comparison(rows={**COMPARISON.rows, "other": f"{COMPARISON.rows['one']} --model.gate-hidden 32"})
    assert [row["name"] for row in compare_speed.current(rows, changed)] == ["one"]
    monkeypatch.setattr(compare_speed, "comparison_of", lambda name: changed)
    assert [row["speed_ratio"] for row in call()] == [1, 4] and made[2:] == [(8, 4), (32, 4)]


def test_whole_steps_of_a_run_are_measured(call):
    one, other = call("--rounds", "3", "--steps", "2")
    for row in (one, other):
        assert 0 < row["mfu"] < 1 and len(row["step_seconds_all"]) == 3
        assert row["examples_per_second"] == pytest.approx(32 / row["step_seconds"])
    assert one["speed_ratio"] == one["mfu_ratio"] == 1 and other["flops_per_example"] > one["flops_per_example"]


def test_what_cannot_be_is_an_error(capsys):
    assert compare_speed.main(["nothing", "--dirty"]) == 2
    assert "no comparison 'nothing'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        compare_speed.main(["toy", "--rounds", "2"])
    assert "rounds is 2; it must be at least 3" in " ".join(capsys.readouterr().err.replace("│", " ").split())
