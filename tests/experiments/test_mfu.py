"""`experiments.mfu`: its rows, what it measures of a tiny model, and what it makes of numbers."""

import dataclasses
import itertools
import json
import statistics

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import mfu, mfu_report
from experiments.mfu_ladder import SIZES, TITLES, kunlun_of, ladder
from experiments.padded import registered
from experiments.random_batches import in_rectangles, longest_history, random_batch
from kunlun_jax import flops
from kunlun_jax.data.schema import Categorical, EventType, Schema
from kunlun_jax.models.config import KunlunConfig
from kunlun_jax.nn.embedding import init_tables, lookup

ITEM = Categorical("item", 9)
SCHEMA = Schema("little", (ITEM,), events=(EventType("impression", (ITEM,)),), tasks=("click",))
TINY = kunlun_of("tiny")
FLAGS = ("--size", "tiny", "--batch", "4", "--rounds", "3", "--calls", "1", "--dirty")


@pytest.fixture
def little(monkeypatch):
    """The tiny size in one layer on a schema of one feature and one event type, and a peak measured in no time."""
    one_layer = dataclasses.replace(TINY, layers=1, event=dataclasses.replace(TINY.event, layers=1))
    monkeypatch.setitem(SIZES, "tiny", dataclasses.replace(SIZES["tiny"], model=one_layer))
    monkeypatch.setattr(mfu, "synthetic_schema", lambda: SCHEMA)
    monkeypatch.setattr("kunlun_jax.mfu.MEASURED_SIZE", 64)


def test_each_row_changes_one_thing():
    rungs = ladder(dataclasses.replace(TINY, layers=3))
    assert list(rungs) == list(TITLES)

    def flat(rung):
        model = dataclasses.asdict(rung.model)
        event = {f"event.{name}": value for name, value in model.pop("event").items()}
        return {"rectangles": rung.rectangles, "pads": rung.pads, **model, **event}

    kunlun = [flat(rung) for name, rung in rungs.items() if name != "interformer"]
    changes = [{name for name in a if a[name] != b[name]} for a, b in itertools.pairwise(kunlun)]
    assert changes == [
        {"rectangles", "pads"},
        {"pads"},
        {"pooling"},
        {"event.window"},
        {"pattern"},
        {"event.layers", "events"},
    ]
    assert rungs["interformer"].pads == rungs["blocks"].pads == "all"


@pytest.mark.parametrize("size", ["base", "large"])
def test_the_last_row_is_the_preset_with_smaller_impressions(size):
    preset, last = kunlun_of(size), ladder(kunlun_of(size))["personalized"].model
    assert isinstance(last, KunlunConfig)
    assert dataclasses.replace(last, events={}) == dataclasses.replace(preset, events={})
    assert last.events["impression"].dim * 2 == preset.event.dim


def test_bad_flags():
    with pytest.raises(ValueError, match=r"rows names \['nothing'\]; name some of \['interformer', "):
        mfu.Arguments(rows=("gdpa", "nothing"))
    with pytest.raises(ValueError, match=r"rounds is 2; it must be at least 3"):
        mfu.Arguments(rounds=2)


@pytest.mark.slow
def test_padded_packed_and_jagged_rows_compute_the_same():
    packed = random_batch(SCHEMA, 5, 20, "jagged")
    longest = longest_history(packed)
    rungs = {name: rung for name, rung in ladder(TINY).items() if name in ("blocks", "packed", "gdpa")}
    found = []
    with registered(longest, "xla") as names:
        for rung, implementation in zip(rungs.values(), (*names, "xla"), strict=True):
            config = dataclasses.replace(rung.model, implementation=implementation)
            model = config.build(SCHEMA, base_rate=(0.1,), rngs=nnx.Rngs(0))
            tables = init_tables(SCHEMA, model.embedding_dim, scale=1.0, key=jax.random.key(0))
            batch = in_rectangles(packed, longest) if rung.rectangles else packed
            forward = jax.jit(lambda tables, batch, model=model: model(batch, lookup(SCHEMA, batch, tables)))
            found.append(np.asarray(forward(tables, batch)))
    assert found[0].std() > 1e-3
    np.testing.assert_allclose(found[0], found[2], rtol=0, atol=2e-5)
    np.testing.assert_allclose(found[1], found[2], rtol=0, atol=2e-5)


@pytest.mark.slow
def test_rows_are_measured_stored_and_not_measured_again(little, tmp_path, capsys, monkeypatch):
    out = tmp_path / "mfu.json"
    flags = [*FLAGS, "--lengths", "jagged", "--rows", "compskip", "interformer", "--out", str(out)]
    assert mfu.main(flags) == 0
    assert "CompSkip" in capsys.readouterr().out and out.with_suffix(".png").stat().st_size > 10_000
    first, second = rows = json.loads(out.read_text())["rows"]
    assert [row["name"] for row in rows] == ["interformer", "compskip"]
    assert first["implementation"] == f"padded_{first['padded_to'] + 8}" and second["implementation"] == "xla"
    packed = random_batch(SCHEMA, 4, SIZES["tiny"].loader.max_events, "jagged")
    lengths = {"impression": np.asarray(packed.events["impression"].lengths)}
    for row in rows:
        model = ladder(kunlun_of("tiny"))[row["name"]].model.build(SCHEMA, base_rate=(0.1,), rngs=nnx.Rngs(0))
        assert row["useful_flops_per_example"] == 3 * flops.total_flops(model.parts(lengths))
        assert len(row["step_seconds_all"]) == 3
        rate = 4 / statistics.median(row["step_seconds_all"])
        assert row["mfu"] == pytest.approx(row["useful_flops_per_example"] * rate / row["peak"]["flops_per_second"])
        assert "best of 5 in each of 3 rounds" in row["peak"]["source"]
        assert row["peak_memory_bytes"] > 0 and row["environment"]["commit"]
    ratio = statistics.median(a / b for a, b in zip(first["step_seconds_all"], second["step_seconds_all"], strict=True))
    assert second["speed_ratio"] == pytest.approx(ratio) and "speed_ratio" not in first
    work = second["useful_flops_per_example"] / first["useful_flops_per_example"]
    assert second["mfu_ratio"] == pytest.approx(ratio * work)
    monkeypatch.setattr(mfu, "measure", lambda *_: pytest.fail("measured again"))
    assert mfu.main(flags) == 0
    assert json.loads(out.read_text())["rows"] == rows


def test_tables_of_numbers():
    peak = {"flops_per_second": 2e11, "dtype": "float32", "source": "measured, somehow"}
    row = {
        "size": "base",
        "lengths": "full",
        "name": "hsp",
        "settings": {"batch": 16},
        "mean_events": {"click": 20.0, "impression": 40.0},
        "padded_to": 48,
        "peak": peak,
        "useful_flops_per_example": 3e9,
        "step_seconds": 0.25,
        "examples_per_second": 64.0,
        "mfu": 0.123,
        "peak_memory_bytes": 2_000_000_000,
        "speed_ratio": 0.5,
        "mfu_ratio": 2.0,
    }
    text = mfu_report.markdown([row])
    assert (
        "base, full: 16 examples of 30 events of each type on average, padded to 48; float32, peak 200 GFLOP/s" in text
    )
    assert text.splitlines()[-1] == "| HSP for PMA | 3 | 250 ms | 64.0 | 0.50 | 12.3% | 2.00 | 2.00 GB |"
    assert "12.3%" in mfu_report.table([row])
