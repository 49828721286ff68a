"""A comparison that goes on where it stopped, its table and its picture."""

import dataclasses
import json
import shlex
import sys

import numpy as np
import pytest
from flax import nnx

from experiments import ablation, compare, result_rows
from experiments.compare import Comparison
from experiments.comparisons import NAMES
from experiments.comparisons.ablation import CHANGES, PLAIN_WIDTH
from experiments.configs import PRESETS
from kunlun_jax.data.open import open_dataset
from kunlun_jax.data.sets import synthetic
from kunlun_jax.flops import total_flops
from kunlun_jax.training.evaluate import NotFinite
from kunlun_jax.training.run import sample_lengths
from kunlun_jax.training.skipped import Diverged
from tests.experiments.tiny import ANY

TINY = " ".join(ANY)


def constant(config, seed):
    """A model that is always the same, on the splits of a config."""
    return {"splits": {split: {"ne": 1.0, "auc": 0.5} for split in config.run.eval_splits}}


COMPARISON = Comparison(
    rows={"whole": TINY, "no ranks": f"{TINY} --model.no-rank-feature"},
    others={"constant": ("whole", constant)},
    columns=("test ne", "valid auc"),
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two rows for one seed, measured by the command."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "comparison_of", lambda name: COMPARISON)
        flags = ["toy", "--dirty", "--out", str(folder / "toy.json"), "--runs", str(folder / "runs")]
        assert compare.main([*flags, "--seeds", "0", "--rows", "whole", "constant"]) == 0
    return folder


def test_a_row_has_what_it_takes_to_make_it_again(measured):
    first, second = json.loads((measured / "toy.json").read_text())["rows"]
    assert (first["name"], first["seed"], first["flags"]) == ("whole", 0, TINY)
    assert first["splits"]["test"]["ne"] > first["splits"]["test"]["floor"] > 0 and first["steps"] == 19
    assert first["executed_flops_per_example"] > 3 * first["flops_per_example"] > 0
    assert first["moved_bytes_per_step"] > 8 * first["parameters"] > 0
    assert first["environment"]["commit"] and first["environment"]["load_average"] >= 0
    assert (second["name"], second["splits"]["test"]["ne"]) == ("constant", 1.0)
    assert list((measured / "runs").iterdir()) == []


def test_rows_that_are_there_are_not_run_again(measured, tmp_path, monkeypatch, capsys):
    out = tmp_path / "toy.json"
    out.write_text((measured / "toy.json").read_text())
    calls = []
    monkeypatch.setattr(compare, "comparison_of", lambda name: COMPARISON)
    monkeypatch.setattr(
        result_rows, "trained", lambda config, path, dataset: calls.append(config) or constant(config, 0) | {"steps": 1}
    )
    assert compare.main(["toy", "--dirty", "--out", str(out), "--seeds", "0"]) == 0
    assert [config.model.rank_feature for config in calls] == [False]
    rows = json.loads(out.read_text())["rows"]
    assert [row["name"] for row in rows] == ["whole", "no ranks", "constant"]
    assert rows[0] == json.loads((measured / "toy.json").read_text())["rows"][0]
    difference = 1 - rows[0]["splits"]["test"]["ne"]
    printed = capsys.readouterr()
    assert f"| no ranks | 1.0000 | 0.5000 | {difference:+.4f} |" in printed.out
    assert f"no ranks, seed 0: measuring {COMPARISON.rows['no ranks']}\n" in printed.err
    assert "whole, seed 0" not in printed.err
    assert out.with_suffix(".png").stat().st_size > 5_000


def test_rows_on_other_data_are_shown_though_they_are_not_run(tmp_path, monkeypatch, capsys):
    more = Comparison(rows={"whole": TINY, "fewer rows": f"{TINY} --data.train-rows 100"}, columns=("test ne",))
    monkeypatch.setattr(compare, "comparison_of", lambda name: more)
    monkeypatch.setattr(result_rows, "trained", lambda config, path, dataset: constant(config, 0))
    command = ["toy", "--dirty", "--out", str(tmp_path / "toy.json"), "--seeds", "0", "--rows"]
    for name in more.rows:
        assert compare.main([*command, name]) == 0
    whole, fewer = json.loads((tmp_path / "toy.json").read_text())["rows"]
    assert whole["data"] != fewer["data"]
    printed = capsys.readouterr()
    assert "| whole | 1.0000 | +0.0000 |\n| fewer rows | 1.0000 | +0.0000 |" in printed.out
    assert "left out" not in printed.err


def test_flags_that_cannot_be_are_told_before_anything_runs(tmp_path, monkeypatch, capsys):
    broken = Comparison(rows={"whole": TINY, "broken": "nowhere.py"})
    monkeypatch.setattr(compare, "comparison_of", lambda name: broken)
    monkeypatch.setattr(result_rows, "trained", lambda *_: pytest.fail("it ran"))
    assert compare.main(["toy", "--dirty", "--out", str(tmp_path / "toy.json")]) == 2
    assert "nowhere.py: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("error", [Diverged("step 3: skipped"), NotFinite("a logit is nan")])
def test_a_run_that_diverges_is_stored_and_the_others_go_on(error, tmp_path, monkeypatch, capsys):
    def trained(config, path, dataset):
        if not config.model.rank_feature:
            raise error
        return constant(config, 0)

    monkeypatch.setattr(result_rows, "trained", trained)
    monkeypatch.setattr(compare, "comparison_of", lambda name: COMPARISON)
    assert compare.main(["toy", "--dirty", "--out", str(tmp_path / "toy.json"), "--seeds", "0"]) == 0
    printed = capsys.readouterr()
    assert f"no ranks, seed 0: {error}" in printed.err
    assert "| no ranks (1 diverged) |  |  |  |" in printed.out and "| constant | 1.0000 |" in printed.out
    assert compare.best([{"diverged": "x", "splits": {}}, {"splits": {"valid": {"ne": 2.0}}}], COMPARISON)["splits"]


def test_rows_of_other_flags_or_data_are_not_seeds():
    def row(name, seed=0, flags=TINY, data="new"):
        return {"name": name, "seed": seed, "flags": flags, "data": data}

    rows = [row("whole"), row("whole", flags="old"), row("whole", data="old"), row("an older model", flags="any")]
    assert compare.current(rows, COMPARISON, {"new"}) == [rows[0], rows[3]]
    with pytest.raises(ValueError, match=r"row 'whole' is of 2 data sets, \['new', 'old'\]"):
        compare.current(rows, COMPARISON)
    assert compare.current(rows[:2], COMPARISON) == rows[:1]


def test_a_table_shows_the_spread_of_seeds():
    rows = [
        {"name": name, "seed": seed, "splits": {"test": {"ne": ne}, "valid": {"auc": 0.7}}}
        for name, seed, ne in (("whole", 0, 0.8), ("whole", 1, 0.82), ("no ranks", 1, 0.9))
    ]
    lines = compare.table(rows, COMPARISON).splitlines()
    assert lines[2] == "| whole | 0.8100 ± 0.0141 | 0.7000 ± 0.0000 | +0.0000 +0.0000 |"
    assert lines[3] == "| no ranks | 0.9000 | 0.7000 | +0.0800 |"


def test_rows_that_a_comparison_no_longer_has_are_a_table_of_their_own_beside_its_first_row():
    sizes = {"whole": 4000.0, "an older model": 1000.0}
    rows = [
        {"name": name, "seed": 0, "splits": {"test": {"ne": ne}}, "flops_per_example": sizes[name]}
        for name, ne in (("whole", 0.8), ("an older model", 0.9))
    ]
    comparison = dataclasses.replace(COMPARISON, columns=("test ne", "flops"))
    assert compare.table(rows, comparison).splitlines()[2:] == ["| whole | 0.8000 | 4,000 | +0.0000 |"]
    earlier = compare.table(rows, comparison, earlier=True)
    assert earlier.splitlines()[2:] == ["| an older model | 0.9000 | x 0.250 | +0.1000 |"]
    (axes,) = compare.drawn(rows, comparison).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["an older model"]
    assert axes.get_xlabel().endswith("a dot a seed\npale: of earlier presets")


def test_a_table_shows_sizes_and_speed_beside_the_first_rows_and_what_is_published():
    comparison = dataclasses.replace(
        COMPARISON,
        columns=("test ne", "flops", "executed", "parameters", "examples/s"),
        published={"no ranks": "FLOPs x 0.5", "constant": "nothing"},
    )
    sizes = {"flops_per_example": 4000.0, "executed_flops_per_example": 16_000.0, "parameters": 1_200}
    rows = [
        {"name": name, "seed": seed, "splits": {"test": {"ne": 0.8}}, **sizes, "examples_per_second": speed}
        for name, seed, speed in (("whole", 0, 90.0), ("whole", 1, 110.0), ("no ranks", 0, 150.0))
    ]
    rows[2] |= {"flops_per_example": 1000.0, "executed_flops_per_example": None}
    rows.append({"name": "constant", "seed": 0, "splits": {"test": {"ne": 1.0}}})
    assert compare.table(rows, comparison).splitlines() == [
        "| | test ne | flops | executed | parameters | examples/s | test ne less the first's, by seed | published |",
        "|---|---|---|---|---|---|---|---|",
        "| whole | 0.8000 ± 0.0000 | 4,000 | 16,000 | 1,200 | 100 | +0.0000 +0.0000 |  |",
        "| no ranks | 0.8000 | x 0.250 |  | x 1.000 | x 1.500 | +0.0000 | FLOPs x 0.5 |",
        "| constant | 1.0000 |  |  |  |  | +0.2000 | nothing |",
    ]
    # Without the row that ratios are of there are none, and the rest stands.
    assert "| no ranks | 0.8000 |  |  |  |  |  | FLOPs x 0.5 |" in compare.table(rows[2:3], comparison)


def test_every_row_has_the_same_search_and_its_best_flags_have_the_other_seeds(tmp_path, monkeypatch, capsys):
    searched = Comparison(
        rows={"whole": TINY, "no ranks": f"{TINY} --model.no-rank-feature"},
        seeds=(0, 1, 2),
        search=("--optimizer.learning-rate 1e-3", "--optimizer.learning-rate 2e-3"),
        columns=("valid ne",),
    )
    runs = []

    def fake(row, config, dataset, folder):
        """On "valid" the first row is better at 2e-3 and the second at 1e-3; on "test" it is the other way round."""
        rate, seed = config.optimizer.learning_rate, row["seed"]
        runs.append((row["name"], rate, seed))
        good = (rate == 2e-3) == (row["name"] == "whole")
        valid = (0.8 if good else 0.9) + 0.01 * seed
        return {"splits": {"valid": {"ne": valid}, "test": {"ne": 2 - valid - 0.002 * seed * (row["name"] != "whole")}}}

    monkeypatch.setattr(compare, "train_row", fake)
    monkeypatch.setattr(compare, "comparison_of", lambda name: searched)
    command = ["toy", "--dirty", "--out", str(tmp_path / "toy.json")]
    assert compare.main(command) == 0
    tried = [("whole", 1e-3, 0), ("whole", 2e-3, 0), ("whole", 2e-3, 1), ("whole", 2e-3, 2)]
    others = [("no ranks", 1e-3, 0), ("no ranks", 2e-3, 0), ("no ranks", 1e-3, 1), ("no ranks", 1e-3, 2)]
    assert runs == tried + others
    printed = capsys.readouterr().out
    assert "| whole | 0.8100 ± 0.0100 |" in printed and "| no ranks | 0.8100 ± 0.0100 |" in printed
    assert "+0.0000 -0.0020 -0.0040 | 0.225 |" in printed
    assert compare.main(command) == 0
    assert len(runs) == 8
    # Flags that are no longer searched for do not count; a search that goes on says so.
    rows = result_rows.stored(tmp_path / "toy.json")
    other = dataclasses.replace(searched, search=(searched.search[1], "--optimizer.learning-rate 3e-3"))
    assert "| whole (1 of 2 tried) | 0.8100 ± 0.0100 |" in compare.table(compare.current(rows, other), other)
    assert "| no ranks (1 of 2 tried) | 0.9000 |" in compare.table(compare.current(rows, other), other)


def test_a_paired_p_is_that_of_the_t_test():
    # t = mean / (deviation / sqrt n) = 2 / (1 / sqrt 3) with two degrees of freedom: p = 1 - t / sqrt(t^2 + 2).
    t = 2 * np.sqrt(3)
    assert compare.paired_p([1.0, 2.0, 3.0]) == f"{1 - t / np.sqrt(t**2 + 2):.3f}"
    assert compare.paired_p([0.1, 0.2]) == "" and compare.paired_p([0.0, 0.0, 0.0]) == ""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"columns": ("speed",)},
            r"column 'speed' is neither a split and a metric nor one of \['flops', 'executed', 'bytes'",
        ),
        ({"published": {"hole": "x"}}, r"published names \['hole'\]; there are \['whole', 'no ranks', 'constant'\]"),
        ({"seedless": ("whole",)}, r"seedless names \['whole'\]; there are \['constant'\]"),
    ],
)
def test_a_comparison_that_cannot_be_shown_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(COMPARISON, **fields)


def test_the_plain_ffn_of_the_ablation_makes_the_flops_of_the_whole(monkeypatch):
    """Of all whole widths the one that comes nearest."""
    monkeypatch.setattr(synthetic, "P_TRAIN_ROWS", 16)
    config = PRESETS["kunlun/small"][1]
    dataset = open_dataset(config.data)
    lengths = sample_lengths(dataset, config)

    def flops(flags: str) -> float:
        model = compare.parse(["kunlun/small", *flags.split()])[1].model
        return total_flops(
            nnx.eval_shape(lambda: model.build(dataset.schema, base_rate=(0.1,), rngs=nnx.Rngs(0))).parts(lengths)
        )

    whole, plain = flops(""), CHANGES["plain FFN"]
    assert plain.endswith(f" {PLAIN_WIDTH}")
    widths = np.arange(PLAIN_WIDTH - 1, PLAIN_WIDTH + 2)
    off = [abs(flops(plain.replace(str(PLAIN_WIDTH), str(width))) / whole - 1) for width in widths]
    assert np.argmin(off) == 1 and off[1] < 2e-3


def test_the_ablation_is_a_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ablation", "--rows", "nothing"])
    assert ablation.main() == 2
    assert "rows names ['nothing']; there are ['whole', 'plain FFN'" in capsys.readouterr().err


def test_code_with_changes_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(result_rows, "environment", lambda: {"commit": "abc+changes", "backend": "cpu"})
    assert compare.main(["remedies"]) == 2
    assert "the commit is abc+changes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nothing"], "no comparison 'nothing'; there are ['ablation', 'amazonelectronics_x1'"),
        (["remedies", "--rows", "x"], "rows names ['x']"),
    ],
)
def test_names_that_are_not_there_exit_2(flags, message, capsys):
    assert compare.main(flags) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "rates"),
    [("leaderboard_kuairand", [2.5e-4, 5e-4, 1e-3, 2e-3]), ("leaderboard_movielens", [1e-3, 2e-3, 4e-3, 8e-3])],
)
def test_every_system_of_a_leaderboard_tries_the_same_rates(name, rates):
    comparison = compare.comparison_of(name)
    for row in comparison.rows:
        tried = [compare.parse(shlex.split(flags))[1] for flags in comparison.flags_of(row)]
        assert [config.optimizer.learning_rate for config in tried] == rates


def test_the_split_by_time_has_the_systems_of_the_random_split_and_the_rates_of_their_presets():
    comparison = compare.comparison_of("leaderboard_movielens_last")
    assert list(comparison.rows) == list(compare.comparison_of("leaderboard_movielens").rows)
    for row in comparison.rows:
        (flags,) = comparison.flags_of(row)
        preset = compare.parse([f"{row}/movielens"])[1]
        assert compare.parse(shlex.split(flags))[1].optimizer == preset.optimizer


@pytest.mark.parametrize("name", NAMES)
def test_every_row_of_every_comparison_is_a_config_and_no_two_are_the_same(name):
    comparison = compare.comparison_of(name)
    configs = [compare.parse(shlex.split(flags))[1] for name in comparison.rows for flags in comparison.flags_of(name)]
    assert len({repr(config) for config in configs}) == len(configs)
    metrics = [column for column in comparison.columns if column not in compare.SIZES]
    for column in (*metrics, f"{comparison.split} {comparison.metric}"):
        assert column.split()[0] in configs[0].run.eval_splits and column.split()[1] in result_rows.KEPT
