"""The plan of the scaling law, a measurement that goes on where it stopped, its table and its picture."""

import dataclasses
import json
import re
import shlex
import signal
import time

import numpy as np
import pytest

from experiments import scaling_law, scaling_report
from experiments.result_rows import RESULTS, stored
from experiments.scaling_families import FAMILIES, MOVIELENS, SIZES
from experiments.scaling_plan import (
    BUDGETS,
    Planned,
    best_rate,
    current,
    families,
    missing,
    planned,
    rate_of,
    search,
    useful_flops,
)
from experiments.train import parse
from kunlun_jax.data.open import open_dataset
from kunlun_jax.data.sets import synthetic
from kunlun_jax.training.stop import Stop

CPU, TINY = BUDGETS["cpu"], BUDGETS["tiny"]
ETAS = {"kunlun": 0.02, "interformer": 0.016, "wukong": 0.01, "hstu": 0.005, "din": 0.012}


@pytest.fixture(scope="module")
def dataset():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "P_TRAIN_ROWS", 16)
        return open_dataset(parse(["kunlun/small"])[1].data)


@pytest.mark.parametrize("system", FAMILIES)
def test_a_family_grows_over_two_decades_of_useful_flops(system, dataset):
    configs = [parse(shlex.split(flags))[1] for flags in FAMILIES[system]]
    assert len(configs) == SIZES >= 6 and len({config.data for config in configs}) == 1
    flops = np.array([useful_flops(config, dataset) for config in configs])
    assert flops[-1] / flops[0] >= 100
    steps = np.diff(np.log10(flops))
    assert steps.min() > 0.3 and steps.max() < 0.6, "sizes are to be evenly spaced, 0.4 decades"


@pytest.mark.parametrize("system", MOVIELENS)
def test_the_flags_of_movielens_are_flags_of_each_system(system):
    _, config = parse([*shlex.split(Planned(system, 0, None, 0).flags(CPU, "movielens")), "--data.root", "ml-1m"])
    assert config.model.wide and config.loader.shuffle == "global"
    assert config.run.max_steps * config.loader.batch_size == pytest.approx(150_000, rel=1e-3)


def measured(budget, data, fingerprint):
    """Rows of a budget as if each system followed its law, with a best rate of 3e-3 at size 1 and 1e-3 at size 4."""
    rows, rng = [], np.random.default_rng(0)
    while runs := [run for run in missing(budget, rows, data, fingerprint) if run.rate is not None]:
        for run in runs:
            best = 3e-3 * 3 ** -np.clip((run.size - 1) / 3, 0, 1)
            decades = 0.4 * run.size - 1 + 0.01 * [*FAMILIES].index(run.system)
            ne = 0.85 - ETAS[run.system] * decades + abs(np.log(run.rate / best)) * 0.01 + rng.normal(0, 2e-4)
            row = run.row(budget, data, fingerprint)
            splits = {"valid": {"ne": ne}, "test": {"ne": ne, "floor": 0.68}}
            rows.append(row | {"splits": splits, "flops_per_example": 1e6 * 10**decades, "seconds": 60.0})
    return rows


@pytest.fixture(scope="module")
def rows(dataset):
    return measured(CPU, "synthetic", dataset.fingerprint)


def test_the_plan_of_the_cpu_is_what_the_help_says(rows, dataset):
    runs = list(planned(CPU, []))
    # One more rate for the larger tuned size of each system, whose best of the first three is the smallest.
    assert len(runs) == 110 and len(set(planned(CPU, rows))) == 115 == len(rows)
    for name, budget in BUDGETS.items():
        assert re.search(rf"--budget {name} .*\b{len(list(planned(budget, [])))} runs", scaling_law.__doc__)
    assert missing(CPU, rows, "synthetic", dataset.fingerprint) == []
    # Rows of another world are none of this one's, and none of their rates, either.
    elsewhere = missing(CPU, rows, "synthetic", "another world")
    assert len(elsewhere) == 110 and sum(run.rate is not None for run in elsewhere) == 30
    # Every size of every seed, of which the search for rates has made two.
    assert {system: len(group) for system, group in families(CPU, rows).items()} == dict.fromkeys(FAMILIES, 18)


def test_rates_come_from_two_sizes_and_are_carried_to_the_others(rows):
    assert [best_rate(CPU, rows, "hstu", size) for size in (0, 1, 4)] == [None, 3e-3, 1e-3]
    # A line in the logarithm between sizes 1 and 4, and what they have beyond them.
    expected = [3e-3, 3e-3, 3 ** (2 / 3) * 1e-3, 3 ** (1 / 3) * 1e-3, 1e-3, 1e-3]
    assert [rate_of(CPU, rows, "hstu", size) for size in range(6)] == pytest.approx(expected, rel=0.03)
    one_short = [row for row in rows if (row["system"], row["size"], row["rate"]) != ("hstu", 4, 9e-3)]
    assert best_rate(CPU, one_short, "hstu", 4) is None and rate_of(CPU, one_short, "hstu", 0) is None
    assert scaling_report.rates(rows, CPU, "hstu") == "0.003, 0.001"
    assert scaling_report.rates(one_short, CPU, "hstu") == "0.003, ?"


def test_a_search_goes_on_until_its_best_rate_has_worse_ones_on_either_side(rows):
    def at(**ne):
        return [
            {"system": "din", "size": 1, "seed": 0, "rate": float(rate), "splits": {"valid": {"ne": value}}}
            for rate, value in ne.items()
        ]

    first = {"1e-3": 0.80, "3e-3": 0.82, "9e-3": 0.85}
    assert search(CPU, at(**first), "din", 1) == ((3e-4, 1e-3, 3e-3, 9e-3), None)
    assert search(CPU, at(**first, **{"3e-4": 0.81}), "din", 1) == ((3e-4, 1e-3, 3e-3, 9e-3), 1e-3)
    falling = at(**first, **{"3e-4": 0.79, "1e-4": 0.78})
    assert search(CPU, falling, "din", 1) == ((1e-4, 3e-4, 1e-3, 3e-3, 9e-3), 1e-4)
    assert scaling_report.rates(falling, CPU, "din") == "0.0001*, ?"
    assert search(CPU, at(**first | {"9e-3": 0.7}), "din", 1) == ((1e-3, 3e-3, 9e-3, 3e-2), None)
    assert search(TINY, at(**{"3e-3": 0.8}), "din", 1) == ((3e-3,), 3e-3)


def test_rows_of_another_plan_or_world_do_not_count(rows, dataset):
    assert current(rows, CPU, "synthetic", dataset.fingerprint) == current(rows, CPU, "synthetic") == rows
    assert current(rows, CPU, "movielens") == current(rows, CPU, "synthetic", "another world") == []

    def before(row):
        return row | {"flags": row["flags"].replace("--model.experts 1", "--model.experts 2")}

    stale = current([before(row) if row["size"] == 4 else row for row in rows], CPU, "synthetic")
    assert best_rate(CPU, stale, "kunlun", 1) == 3e-3 and best_rate(CPU, stale, "kunlun", 4) is None
    assert best_rate(CPU, stale, "hstu", 4) == 1e-3
    longer = [row | {"flags": f"{row['flags']} --model.dropout 0.9"} for row in rows]
    assert current(longer, CPU, "synthetic") == []
    with pytest.raises(ValueError, match=r"the rows are of 2 data sets, \['another', 'synthetic-"):
        current([*rows, rows[0] | {"data": "another"}], CPU, "synthetic")


def test_a_run_that_diverged_is_the_worst_of_its_rate_and_in_no_law(rows):
    def lost(row):
        return {key: row[key] for key in row if key != "flops_per_example"} | {
            "splits": {},
            "diverged": "step 9",
        }

    some = [lost(row) if (row["system"], row["size"], row["rate"]) == ("hstu", 4, 1e-3) else row for row in rows]
    assert best_rate(CPU, some, "hstu", 4) == 3e-3
    some = [lost(row) if (row["system"], row["size"], row["seed"]) == ("hstu", 5, 1) else row for row in rows]
    line = next(line for line in scaling_report.markdown(some, CPU).splitlines() if line.startswith("| HSTU"))
    assert line.startswith("| HSTU | 17, 1 diverged | 0.003, 0.001 | 0.0")
    every = [lost(row) if (row["system"], row["size"]) == ("hstu", 4) else row for row in rows]
    assert search(CPU, every, "hstu", 4) == ((1e-4, 3e-4, 1e-3, 3e-3, 9e-3), None)
    every.append(next(row for row in every if "diverged" in row) | {"rate": 1e-4, "seed": 0})
    with pytest.raises(ValueError, match=r"hstu, size 4: the run diverged at every rate of \(0.0001, 0.0003, 0.001, 0"):
        best_rate(CPU, every, "hstu", 4)


def test_an_estimate_is_that_of_runs_of_the_same_size_or_of_the_systems_stored_speed(rows, dataset):
    run = Planned("din", 5, None, 0)
    assert scaling_law.seconds(run, CPU, "synthetic", rows, dataset) == 60
    # Stored: 1510 examples/s at 4.77 MFLOPs, and 23 s beside training; this size has 8.66.
    expected = 586 * 256 / 1509.9 * 8.655 / 4.769 + 122.1 - 586 * 256 / 1509.9
    assert scaling_law.seconds(run, CPU, "synthetic", [], dataset) == pytest.approx(expected, rel=0.01)


def test_the_table_has_the_laws(rows):
    lines = scaling_report.markdown(rows, CPU).splitlines()
    cells = {line.split(" | ")[0].strip("| "): [cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]}
    assert list(cells) == ["Kunlun", "InterFormer", "Wukong", "HSTU", "DIN"]
    for system, (_, name) in scaling_report.STYLES.items():
        assert len(cells[name]) == len(scaling_report.HEADS) and cells[name][1] == "18"
        value, low, high = (float(x.strip("[],")) for x in cells[name][3].split())
        assert low <= value <= high and value == pytest.approx(ETAS[system], abs=4e-4)
        assert abs(float(cells[name][6])) < 2e-3
    assert float(cells["Kunlun"][12].split()[0]) == pytest.approx(0.02 / 0.016, rel=0.05)
    assert cells["InterFormer"][12:] == [""]


def test_a_held_out_size_is_not_in_the_fit_that_predicts_it(rows):
    group = families(CPU, rows)["kunlun"]
    spoiled = [row | {"splits": {"test": {"ne": 0.9}}} if row["size"] == 5 else row for row in group]
    # The law of the others goes on to where the largest size was before.
    before = np.mean([row["splits"]["test"]["ne"] for row in group if row["size"] == 5])
    assert scaling_report.laws(spoiled).log_miss == pytest.approx(before - 0.9, abs=2e-3)


def test_few_rows_leave_cells_empty_and_are_drawn(rows, tmp_path):
    few = [row for row in rows if row["system"] in ("kunlun", "din") and row["size"] in CPU.tuned]
    *_, line = scaling_report.markdown(few, CPU).splitlines()
    assert line == "| DIN | 6 | 0.003, 0.001 |  |  |  |  |  |  |  |  |  |  |"
    for name, some in (("few", few), ("all", rows), ("rates", few[:2])):
        scaling_report.picture(some, CPU, "synthetic", tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 20_000


def test_the_law_on_movielens_is_drawn_beside_movielens_alone(rows):
    synthetic = scaling_report.drawn(rows, CPU, "synthetic")
    assert len(synthetic.axes) == 3
    measured = stored(RESULTS / "cpu" / "movielens.json")
    alone = scaling_report.drawn([row | {"data": measured[0]["data"]} for row in rows], CPU, "movielens")
    (axes,) = alone.axes
    for text, (name, called) in zip(axes.texts, scaling_report.ALL_ROWS.items(), strict=True):
        ne = np.mean([row["splits"]["test"]["ne"] for row in measured if row["name"] == name])
        assert text.get_text() == f"{called} {ne:.3f}"


def test_runs_of_a_search_that_goes_on_say_whose_they_are(rows):
    some = [row for row in rows if (row["system"], row["size"]) == ("kunlun", CPU.tuned[0])]
    labels = scaling_report.drawn(some, CPU, "movielens").axes[0].get_legend_handles_labels()[1]
    assert labels == ["Kunlun, search for a rate"]


@pytest.fixture
def fake(monkeypatch):
    """Runs that take no time; how often one was started."""
    calls = []

    def train_row(row, config, dataset, folder):
        calls.append(row["name"])
        ne = {"ne": 1 - 0.01 * row["size"], "floor": 0.6}
        return {"splits": {"valid": ne, "test": ne}, "flops_per_example": 1e5 * 2 ** row["size"]}

    monkeypatch.setattr(scaling_law, "train_row", train_row)
    monkeypatch.setattr(scaling_law, "keep_compiled", lambda cache: None)
    return calls


def test_rows_that_are_there_are_not_run_again(fake, tmp_path, capsys):
    flags = ["--budget", "tiny", "--dirty", "--out", str(tmp_path / "law.json")]
    assert scaling_law.main([*flags, "--minutes", "0"]) == 0
    assert fake == [] and capsys.readouterr().out.startswith("4 runs are missing, about ")
    assert scaling_law.main(flags) == 0
    assert fake == [f"{system} {size}, rate 0.003" for size in (0, 1) for system in ("wukong", "din")]
    assert capsys.readouterr().out.startswith("0 runs are missing\n| system")
    assert scaling_law.main(flags) == 0 and len(fake) == 4
    stored = json.loads((tmp_path / "law.json").read_text())["rows"]
    assert [(row["system"], row["size"]) for row in stored] == [("wukong", 0), ("wukong", 1), ("din", 0), ("din", 1)]
    assert all(row["environment"]["commit"] and row["seconds"] >= 0 for row in stored)
    assert (tmp_path / "law.png").exists()


def test_a_call_may_run_some_systems_alone(fake, tmp_path, capsys):
    flags = ["--budget", "tiny", "--dirty", "--out", str(tmp_path / "law.json")]
    assert scaling_law.main([*flags, "--systems", "din"]) == 0
    assert fake == ["din 0, rate 0.003", "din 1, rate 0.003"]
    printed = capsys.readouterr()
    assert printed.out.startswith("2 runs are missing")
    assert "din 1, rate 0.003, seed 0: measuring din/small " in printed.err


def test_a_call_may_run_some_seeds_alone(fake, tmp_path, monkeypatch):
    monkeypatch.setitem(scaling_law.BUDGETS, "tiny", dataclasses.replace(scaling_law.BUDGETS["tiny"], seeds=(0, 1)))
    flags = ["--budget", "tiny", "--dirty", "--out", str(tmp_path / "law.json"), "--systems", "din"]
    assert scaling_law.main([*flags, "--seeds", "1"]) == 0
    assert fake == []  # it waits for the search, which is of seed 0
    assert scaling_law.main([*flags, "--seeds", "0"]) == 0
    assert scaling_law.main([*flags, "--seeds", "1"]) == 0
    assert fake == ["din 0, rate 0.003", "din 1, rate 0.003"] * 2
    stored = json.loads((tmp_path / "law.json").read_text())["rows"]
    assert sorted((row["size"], row["seed"]) for row in stored) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_call_ends_after_its_minutes_in_the_middle_of_a_run(fake, tmp_path, monkeypatch, capsys):
    def stopped_run(row, config, dataset, folder):
        fake.append(row["name"])
        with Stop() as stop:
            while not stop.reached():
                time.sleep(0.01)
        raise KeyboardInterrupt(stop.signal)

    monkeypatch.setattr(scaling_law, "train_row", stopped_run)
    flags = ["--budget", "tiny", "--dirty", "--out", str(tmp_path / "law.json"), "--minutes", "0.005"]
    before = signal.getsignal(signal.SIGALRM)
    assert scaling_law.main(flags) == 0
    assert fake == ["wukong 0, rate 0.003"]
    out = capsys.readouterr()
    assert out.out.startswith("4 runs are missing") and "cut off; the same command goes on there" in out.err
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_calls_at_once_share_the_runs(fake, tmp_path, monkeypatch, capsys):
    done = scaling_law.train_row
    flags = ["--budget", "tiny", "--dirty", "--out", str(tmp_path / "law.json"), "--runs", str(tmp_path / "runs")]

    def while_another_call_runs(row, config, dataset, folder):
        found = done(row, config, dataset, folder)
        if len(fake) == 1:
            assert scaling_law.main(flags) == 0
        return found

    monkeypatch.setattr(scaling_law, "train_row", while_another_call_runs)
    assert scaling_law.main(flags) == 0
    assert fake == [f"{system} {size}, rate 0.003" for size in (0, 1) for system in ("wukong", "din")]
    printed = capsys.readouterr()
    assert printed.err.count("another call is at it") == 1
    assert [line for line in printed.out.splitlines() if "missing" in line] == [
        "1 runs are missing, about 0.0 hours on two cores",
        "0 runs are missing",
    ]
    assert list((tmp_path / "runs").iterdir()) == []


def test_an_interrupt_of_a_person_is_one(fake, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(scaling_law, "train_row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scaling_law.main(["--budget", "tiny", "--dirty", "--out", str(tmp_path / "law.json")])


@pytest.mark.slow  # it compiles four models; each other test takes seconds
def test_the_tiny_budget_runs(tmp_path):
    out, runs = tmp_path / "law.json", tmp_path / "runs"
    assert scaling_law.main(["--budget", "tiny", "--dirty", "--out", str(out), "--runs", str(runs)]) == 0
    found = json.loads(out.read_text())["rows"]
    assert len(found) == 4 and list(runs.iterdir()) == []
    for row in found:
        assert row["splits"]["test"]["ne"] > row["splits"]["test"]["floor"] > 0 and 0 < row["mfu"] < 1
        assert row["steps"] == 7 and row["flags"].endswith("--optimizer.learning-rate 0.003")
    assert found[1]["flops_per_example"] > found[0]["flops_per_example"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "movielens"], "data is 'movielens' and root 'None'; movielens needs the folder of ml-1m"),
        (["--root", "ml-1m"], "data is 'synthetic' and root 'ml-1m'"),
        (["--minutes", "-1"], "minutes is -1.0; it must be at least 0"),
        (["--budget", "tiny", "--data", "movielens", "--root", "x"], "budget 'tiny' is of the synthetic world alone"),
        (["--budget", "gpu", "--systems", "din", "kunlun"], "systems names ['din']; budget 'gpu' has ['kunlun', 'int"),
        (["--budget", "tiny", "--seeds", "2"], "seeds names [2]; budget 'tiny' has [0]"),
    ],
)
def test_flags_that_cannot_be_exit_2(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        scaling_law.main(flags)
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_folder_that_is_no_movielens_exits_2(tmp_path, capsys):
    assert scaling_law.main(["--data", "movielens", "--root", str(tmp_path), "--dirty"]) == 2
    assert "holds no known data set" in capsys.readouterr().err
