"""A comparison that goes on where it stopped, its table and its picture."""

import json

import pytest

from experiments import compare
from experiments.compare import Comparison
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
    assert first["environment"]["commit"] and first["environment"]["load_average"] >= 0
    assert (second["name"], second["splits"]["test"]["ne"]) == ("constant", 1.0)
    assert list((measured / "runs").iterdir()) == []


def test_rows_that_are_there_are_not_run_again(measured, tmp_path, monkeypatch, capsys):
    out = tmp_path / "toy.json"
    out.write_text((measured / "toy.json").read_text())
    calls = []
    monkeypatch.setattr(compare, "comparison_of", lambda name: COMPARISON)
    monkeypatch.setattr(
        compare, "trained", lambda config, path, dataset: calls.append(config) or constant(config, 0) | {"steps": 1}
    )
    assert compare.main(["toy", "--dirty", "--out", str(out), "--seeds", "0"]) == 0
    assert [config.model.rank_feature for config in calls] == [False]
    rows = json.loads(out.read_text())["rows"]
    assert [row["name"] for row in rows] == ["whole", "no ranks", "constant"]
    assert rows[0] == json.loads((measured / "toy.json").read_text())["rows"][0]
    difference = 1 - rows[0]["splits"]["test"]["ne"]
    assert f"| no ranks | 1.0000 | 0.5000 | {difference:+.4f} |" in capsys.readouterr().out
    assert out.with_suffix(".png").stat().st_size > 5_000


def test_a_table_shows_the_spread_of_seeds():
    rows = [
        {"name": name, "seed": seed, "splits": {"test": {"ne": ne}, "valid": {"auc": 0.7}}}
        for name, seed, ne in (("whole", 0, 0.8), ("whole", 1, 0.82), ("no ranks", 1, 0.9))
    ]
    lines = compare.table(rows, COMPARISON).splitlines()
    assert lines[2] == "| whole | 0.8100 ± 0.0141 | 0.7000 ± 0.0000 | +0.0000 +0.0000 |"
    assert lines[3] == "| no ranks | 0.9000 | 0.7000 | +0.0800 |"


def test_code_with_changes_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(compare, "environment", lambda: {"commit": "abc+changes", "backend": "cpu"})
    assert compare.main(["remedies"]) == 2
    assert "the commit is abc+changes, so nobody could measure this again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nothing"], "no comparison 'nothing'; there are ['kuairand'"),
        (["remedies", "--rows", "x"], "rows names ['x']"),
    ],
)
def test_names_that_are_not_there_exit_2(flags, message, capsys):
    assert compare.main(flags) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["kuairand", "movielens", "remedies", "sizes", "systems"])
def test_every_row_of_every_comparison_is_a_config_and_no_two_are_the_same(name):
    comparison = compare.comparison_of(name)
    configs = [compare.parse(flags.split())[1] for flags in comparison.rows.values()]
    assert len({repr(config) for config in configs}) == len(configs)
    for column in (*comparison.columns, f"{comparison.split} {comparison.metric}"):
        assert column.split()[0] in configs[0].run.eval_splits and column.split()[1] in compare.KEPT
