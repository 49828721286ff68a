"""Match counts against a loop in Python, the shallow models, and a table that goes on where it stopped."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import boosted_trees, learns, shallow
from experiments.match_features import DAY_MS, HALF_LIFE_DAYS, history_lengths, match_counts
from kunlun_jax.data.pack import map_ids
from kunlun_jax.data.sets import synthetic
from kunlun_jax.data.sets.synthetic import SyntheticConfig
from kunlun_jax.training.metrics import entropy
from tests.examples import CONTEXTS, SCHEMA, VIEWS, random_rows

WORLD = SyntheticConfig(train_rows=1500, valid_rows=300, test_rows=300, users=60, items_per_brand=2, brands_per_topic=2)
FLAGS = [
    "--world.valid-rows",
    "60",
    "--world.test-rows",
    "60",
    "--world.users",
    "20",
    "--dirty",
    "--rows",
    "300",
    "500",
]


def test_match_counts_are_those_of_a_loop():
    """The item of the candidate is the second context feature, and the first field of both event types."""
    rows = random_rows()
    found = match_counts(SCHEMA, rows)
    assert found.shape == (len(VIEWS), 2 * (1 + len(HALF_LIFE_DAYS))) and found.dtype == np.float32
    expected = np.zeros(found.shape)
    for row in range(len(VIEWS)):
        for kind, event in enumerate(("view", "context")):
            history = rows.events[event]
            for i in range(history.splits[row], history.splits[row + 1]):
                if history.ids[i, 0] != rows.categorical[row, 1]:
                    continue
                days = (rows.request_time_ms[row] - history.time_ms[i]) / DAY_MS
                weights = [1.0, *(2 ** (-days / half_life) for half_life in HALF_LIFE_DAYS)]
                expected[row, kind * len(weights) : (kind + 1) * len(weights)] += weights
    assert expected.max() > 0
    np.testing.assert_allclose(found, np.log1p(expected), rtol=1e-6)


def test_lengths_are_logarithms_of_the_number_of_events():
    expected = np.log1p(np.stack([VIEWS, CONTEXTS], axis=1))
    np.testing.assert_allclose(history_lengths(SCHEMA, random_rows()), expected, rtol=1e-6)


def test_a_schema_without_events_has_no_columns():
    schema, rows = dataclasses.replace(SCHEMA, events=()), dataclasses.replace(random_rows(), events={})
    assert match_counts(schema, rows).shape == history_lengths(schema, rows).shape == (len(VIEWS), 0)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Several wait for each other where other tests have the cores."""
    monkeypatch.setitem(boosted_trees.TREES, "num_threads", 1)


@pytest.fixture(scope="module")
def data():
    dataset = synthetic.open_dataset(WORLD)
    return dataset, shallow.read(dataset, dict.fromkeys(("impression", "click", "purchase"), 50))


def test_inputs_stand_row_by_row(data):
    dataset, inputs = data
    rows = dataset.source.rows(
        np.asarray(dataset.split("valid")), dict.fromkeys(("impression", "click", "purchase"), 50)
    )
    valid = inputs["valid"]
    np.testing.assert_array_equal(valid.labels, rows.labels[:, 0])
    np.testing.assert_array_equal(valid.history["matches"], match_counts(dataset.schema, rows))
    np.testing.assert_array_equal(valid.dense[:, :4], rows.dense)
    np.testing.assert_array_equal(valid.categories, map_ids(rows.categorical, dataset.schema.categorical)[0])
    assert list(valid.sizes) == [feature.size for feature in dataset.schema.categorical]
    assert valid.dense.shape[1] == 4 + WORLD.tags + 1
    assert valid.ids.sum() == len(rows.row) * len(dataset.schema.categorical) + len(rows.multi_valued["tags"].values)


@pytest.mark.parametrize("fit", [shallow.logistic_regression, boosted_trees.boosted_trees])
def test_matches_help_a_shallow_model(data, fit, monkeypatch):
    monkeypatch.setattr(boosted_trees, "MOST_TREES", 30)
    dataset, inputs = data
    scale = entropy(dataset.p_train[0])
    ne = {}
    for history in ((), ("lengths", "matches")):
        logits, chosen = fit(inputs, history, 0)
        assert set(logits) == {"valid", "test"} and len(chosen) == 1
        assert logits["test"].shape == inputs["test"].labels.shape
        ne[history] = shallow.mean_loss(inputs["valid"], logits["valid"]) / scale
    assert ne["lengths", "matches"] < ne[()] - 0.03, ne


@pytest.fixture
def quick(monkeypatch):
    """Trees that take no time, and how often any system was measured."""
    monkeypatch.setattr(boosted_trees, "MOST_TREES", 5)
    calls = []
    measure = learns.measure

    def counted(system, config, seed, *rest):
        calls.append((system, config.train_rows, seed))
        return measure(system, config, seed, *rest)

    monkeypatch.setattr(learns, "measure", counted)
    return calls


def test_rows_that_are_there_are_not_run_again(tmp_path, capsys, quick):
    out = tmp_path / "deep" / "learns.json"
    flags = [*FLAGS, "--out", str(out), "--runs", str(tmp_path / "runs")]
    assert learns.main([*flags, "--systems", "lr", "trees", "--seeds", "0", "1"]) == 0
    assert sorted(quick) == [(s, n, seed) for s, n, seed in sorted(quick) if s == "trees" or seed == 0]
    assert len(quick) == 6 and out.with_suffix(".png").exists()
    first = json.loads(out.read_text())["rows"]
    assert "trees, 300 rows, seed 1: measuring\n" in capsys.readouterr().err
    assert learns.main([*flags, "--systems", "lr", "trees", "trees-matches", "--seeds", "0"]) == 0
    assert quick[6:] == [("trees-matches", 300, 0), ("trees-matches", 500, 0)]
    rows = json.loads(out.read_text())["rows"]
    assert [row for row in rows if row["system"] != "trees-matches"] == first
    for row in rows:
        assert row["environment"]["commit"] and row["environment"]["command"]
        assert {"scikit-learn", "lightgbm"} < set(row["environment"]["versions"]) and row["seconds"] >= 0
        assert row["floor"]["test"] < row["test"]["ne"] and row["test"]["rows"] == 60
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:7]] == [
        [n, s] for n in ("300", "500") for s in ("lr", "trees", "trees-matches")
    ]
    mean = np.mean([row["test"]["ne"] for row in first if (row["system"], row["rows"]) == ("trees", 300)])
    assert float(lines[2].split()[2]) == pytest.approx(mean, abs=5e-5)


def test_rows_of_another_world_are_kept_but_not_shown(tmp_path, capsys, quick):
    out = tmp_path / "learns.json"
    flags = ["--out", str(out), "--systems", "lr"]
    assert learns.main([*FLAGS, *flags]) == 0
    capsys.readouterr()
    assert learns.main([*FLAGS, *flags, "--world.seed", "1"]) == 0
    assert len(quick) == len(json.loads(out.read_text())["rows"]) == 4
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_run_that_diverges_is_a_row_and_the_others_go_on(tmp_path, capsys, quick, monkeypatch):
    monkeypatch.setattr(learns, "train_row", lambda *_: {"splits": {}, "diverged": "no loss at step 7"})
    out = tmp_path / "learns.json"
    flags = [*FLAGS[:-1], "--seeds", "1", "--out", str(out), "--systems", "lr", "trees", "pooled-product"]
    for _ in range(2):
        assert learns.main(flags) == 0
    assert len(quick) == 3 and out.with_suffix(".png").exists()
    assert "    300  pooled-product  seed 1: no loss at step 7" in capsys.readouterr().out
    rows = json.loads(out.read_text())["rows"]
    assert learns.markdown(rows).splitlines()[-2] == "| pooled-product | (1 diverged) |"
    assert [system for _, system in learns.grouped(rows)] == ["lr", "trees"]


@pytest.mark.slow  # what it shows of a training run, test_compare shows, too
def test_a_neural_system_leaves_its_row_alone(tmp_path):
    out, runs = tmp_path / "learns.json", tmp_path / "runs"
    flags = [*FLAGS[:-1], "--seeds", "3", "--out", str(out), "--runs", str(runs), "--systems", "pooled-product"]
    assert learns.main(flags) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["seed"] == 3 and row["parameters"] > 0 and np.isfinite(row["test"]["ne"])
    assert list(runs.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--systems", "lr", "forest"], r"systems names ['forest']"),
        (["--rows", "0"], "rows is (0,)"),
        (["--seeds", "-1"], "seeds is (-1,)"),
    ],
)
def test_flags_that_cannot_be_exit_2(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        learns.main(flags)
    assert message in capsys.readouterr().err
