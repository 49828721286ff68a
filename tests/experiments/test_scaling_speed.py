"""`experiments.scaling_speed`: what it measures, what is not measured again, and what its table makes of numbers."""

import json

import numpy as np
import pytest

from experiments import scaling_speed, scaling_speed_report
from experiments.scaling_plan import BUDGETS, Planned
from experiments.step_times import RunSteps

CPU = BUDGETS["cpu"]


def law_rows(system, eta, flops):
    """Rows of a law of seed 0 to 2 with the best rate of 3e-3 at both tuned sizes."""
    for size, count in enumerate(flops):
        for rate in CPU.rates if size in CPU.tuned else (3e-3,):
            for seed in (0,) if rate != 3e-3 else (0, 1, 2):
                ne = 0.8 - eta * np.log10(count / 1e6) + 0.01 * (rate != 3e-3)
                splits = {"valid": {"ne": ne}, "test": {"ne": ne}}
                row = Planned(system, size, rate, seed).row(CPU, "synthetic", "data")
                yield row | {"splits": splits, "flops_per_example": count}


@pytest.fixture
def rows(monkeypatch):
    """Speeds of two systems: ten times the FLOPs take Kunlun ten times as long, and InterFormer a hundred times."""
    flops = 1e5 * 10 ** np.linspace(0, 2, 6)
    law = [*law_rows("kunlun", 0.02, flops), *law_rows("interformer", 0.02, flops)]
    monkeypatch.setattr(scaling_speed_report, "stored", lambda path: law if path.name == "scaling_law.json" else [])
    found = []
    for system, exponent in (("kunlun", 1), ("interformer", 2)):
        for size, count in enumerate(flops):
            rate = 1e6 / (100 * (count / 1e5) ** exponent)
            found.append(
                {
                    "system": system,
                    "size": size,
                    "flags": Planned(system, size, None, 0).flags(CPU, "synthetic"),
                    "data": "data",
                    "flops_per_example": count,
                    "examples_per_second": rate,
                    "step_seconds": 256 / rate,
                    "step_seconds_all": [250 / rate, 256 / rate, 300 / rate],
                    "mfu": 3 * count * rate / 1e10,
                    "mfu_ratio": 1.5 if system == "kunlun" else 1.0,
                    "environment": {"backend": "cpu"},
                }
            )
    return found


def test_the_table_has_speeds_and_what_time_gains(rows, tmp_path):
    (heads, _, *lines) = scaling_speed_report.markdown(rows, CPU).splitlines()
    cells = {line.split(" | ")[0].strip("| "): [cell.strip() for cell in line.split("|")[1:-1]] for line in lines}
    assert list(cells) == ["Kunlun", "InterFormer"] and heads.count("|") == len(cells["Kunlun"]) + 1
    assert cells["Kunlun"][1] == "10,000, 30.0%" and cells["Kunlun"][6] == "100, 30.0%"
    assert cells["InterFormer"][6] == "1, 0.3%"
    # A decade of time is a decade of FLOPs to Kunlun, and half of one to InterFormer.
    assert cells["Kunlun"][7] == "1.50" and cells["Kunlun"][8].startswith("0.0200 [0.0200")
    assert cells["InterFormer"][7] == "" and cells["InterFormer"][8].startswith("0.0100 [0.0100")
    assert cells["Kunlun"][9].startswith("2.00 [2.00") and cells["InterFormer"][9] == ""
    scaling_speed_report.picture(rows, CPU, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 20_000


def test_few_sizes_leave_cells_empty_and_models_of_before_are_left_out(rows):
    few = [row for row in rows if row["size"] > 3]
    stale = [row | {"flags": row["flags"] + " --model.dropout 0.5"} for row in rows if row["size"] == 3]
    *_, kunlun, _ = scaling_speed_report.markdown(few + stale, CPU).splitlines()
    assert kunlun == "| Kunlun |  |  |  |  | 251, 30.0% | 100, 30.0% |  |  |  |"
    assert scaling_speed_report.markdown(stale, CPU) == ""
    assert len(scaling_speed_report.drawn(stale, CPU).axes) == 2


@pytest.fixture
def fake(monkeypatch):
    """Subjects that take no time; the models that were made."""
    made = []

    class Subject(RunSteps):
        def __init__(self, config, dataset, batches):
            made.append((type(config.model).__name__, config.loader.max_events, batches))
            self.seconds, self.compile_seconds, self.batch_size, self.flops = [], 0.0, 32, 1e5

        def run(self, steps):
            return 0.5

    monkeypatch.setattr(scaling_speed, "RunSteps", Subject)
    monkeypatch.setattr(scaling_speed, "keep_compiled", lambda cache: None)
    monkeypatch.setattr("kunlun_jax.mfu.MEASURED_SIZE", 64)
    return made


def test_sizes_that_are_there_are_not_measured_again(fake, tmp_path, capsys):
    flags = ["--budget", "tiny", "--dirty", "--out", str(tmp_path / "speed.json")]
    assert scaling_speed.main([*flags, "--sizes", "0"]) == 0
    assert fake == [("WukongConfig", 20, 4), ("DINConfig", 20, 4)]
    assert scaling_speed.main(flags) == 0
    assert fake[2:] == [("WukongConfig", 35, 4), ("DINConfig", 35, 4)]
    assert scaling_speed.main(flags) == 0 and len(fake) == 4
    assert "| Wukong | 64, " in capsys.readouterr().out and (tmp_path / "speed.png").exists()
    stored = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert [(row["system"], row["size"]) for row in stored] == [("wukong", 0), ("din", 0), ("wukong", 1), ("din", 1)]
    assert all(row["environment"]["commit"] and row["step_seconds_all"] == [0.5] * 7 for row in stored)


def test_a_model_that_its_family_has_no_longer_gives_way_to_the_new(fake, tmp_path):
    out = tmp_path / "speed.json"
    flags = ["--budget", "tiny", "--dirty", "--out", str(out), "--sizes", "0"]
    assert scaling_speed.main(flags) == 0
    before = json.loads(out.read_text())["rows"]
    out.write_text(json.dumps({"rows": [before[0] | {"flags": "of before"}, before[1]]}))
    assert scaling_speed.main(flags) == 0 and len(fake) == 4
    assert [row["flags"] for row in json.loads(out.read_text())["rows"]] == [row["flags"] for row in before]


@pytest.mark.slow  # it compiles four models; each other test takes seconds
def test_the_tiny_budget_runs(tmp_path):
    out = tmp_path / "speed.json"
    flags = ["--budget", "tiny", "--dirty", "--out", str(out), "--rounds", "3", "--steps", "2"]
    assert scaling_speed.main(flags) == 0
    found = json.loads(out.read_text())["rows"]
    assert len(found) == 4 and all(0 < row["mfu"] < 1 and len(row["step_seconds_all"]) == 3 for row in found)
    assert found[2]["flops_per_example"] > found[0]["flops_per_example"]
    for row in found:
        assert row["examples_per_second"] == pytest.approx(32 / row["step_seconds"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "movielens"], "data is 'movielens' and root 'None'; movielens needs the folder of ml-1m"),
        (["--budget", "tiny", "--data", "movielens", "--root", "x"], "budget 'tiny' is of the synthetic world alone"),
        (["--budget", "tiny", "--sizes", "1", "5"], "sizes names [5]; budget 'tiny' has [0, 1]"),
        (["--rounds", "2"], "rounds is 2; it must be at least 3"),
    ],
)
def test_flags_that_cannot_be_exit_2(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        scaling_speed.main(flags)
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
