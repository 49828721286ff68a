"""The dry run itself: a small step compiled for eight B200s in earnest, and what needs no compiler.

Compiling takes some forty seconds of processor time, a fifth of it for Mosaic to lower three kernels.
"""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import dryrun
from experiments.dry_run.machine import MACHINES
from experiments.dry_run.prediction import counted, predict
from experiments.dry_run.report import series
from kunlun_jax.parallel import MeshConfig
from pallas_kernels.chips import B200
from pallas_kernels.compile_check import check
from tests.experiments.dry_run import pooling_only

PRESET = str(Path(pooling_only.__file__))
DEVICES = 8
ROW = {
    "chip": "b200",
    "preset": "pooling_only",
    "lengths": "data",
    "examples": 16,
    "devices": 8,
    "topology": "1x1x8",
    "axes": {"data": 8, "fsdp": 1, "experts": 1},
    "work": {"useful_flops": 9e12, "gdpa_seconds": 0.001, "attention_seconds": 0.002, "maps_seconds": 0.004},
    "memory": {
        "parameters": 10**9,
        "optimizer state": 0,
        "tables": 2 * 10**9,
        "table optimizer state": 0,
        "batch": 10**9,
        "temporaries": 36 * 10**9,
        "results beside the state": 0,
    },
    "collectives": [
        {"kind": "all-reduce", "group_size": 8, "runs": 2, "bytes": 4e9, "nvlink": 9e9, "network": 0.0},
        {"kind": "all-to-all", "group_size": 8, "runs": 4, "bytes": 1e9, "nvlink": 0.0, "network": 0.5e9},
    ],
    "mosaic_calls": 3,
    "implementations": ["seed_attention: mosaic"],
    "moved_bytes": 24e9,
}
"""What is stored of a compiled step, with numbers that are easy to divide."""


def written(folder: Path, **other: Any) -> str:
    """The path of a file with `ROW`."""
    (folder / "dryrun.json").write_text(json.dumps({"rows": [ROW | other]}))
    return str(folder / "dryrun.json")


def test_parts_of_the_predicted_time_are_counts_over_rates():
    found = predict(ROW, MACHINES["b200"])
    assert found.parts == pytest.approx(
        {"gdpa": 0.001, "attention": 0.002, "maps": 0.004, "traffic": 0.003, "nvlink": 0.01, "network": 0.01}
    )
    assert (found.overlapped, found.apart) == pytest.approx((0.01, 0.03))
    assert found.mfu == pytest.approx((9 / 0.03 / 2250, 9 / 0.01 / 2250))
    near = predict(ROW | {"collectives": []}, MACHINES["b200"])
    assert (near.overlapped, near.limit) == (pytest.approx(0.001 + 0.002 + 0.004), "maps")


def test_counted_work_is_that_of_the_model_and_of_the_bounds():
    config = pooling_only.CONFIG
    schema = config.data.options.open(None, None).schema
    model = nnx.eval_shape(lambda: config.model.build(schema, base_rate=(0.1,), rngs=nnx.Rngs(0)))
    lengths = {"click": np.array([3, 17, 0, 40])}
    found = counted(model, lengths, 8, MACHINES["b200"])
    forward = 8 * sum(part.flops for part in model.parts(lengths))
    # Two tokens pool with one head of 32: four FLOPs for each channel of a score, of twice four examples.
    pooling = 2 * 4 * 60 * 2 * 32
    assert found["useful_flops"] == pytest.approx(3 * forward)
    assert found["maps_seconds"] == pytest.approx(3 * (forward - pooling) / B200.flops)
    assert found["attention_seconds"] > 0 == found["gdpa_seconds"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The row and the optimized HLO. Without a compiler this fails and says what to type, as all compile checks do."""
    folder = tmp_path_factory.mktemp("dryrun")
    flags = ["--dirty", "--out", str(folder / "dryrun.json"), "--keep", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        # Choosing among XLA's own matrix products is a quarter of the work, and changes nothing that is tested here.
        environment = check.environment
        patch.setattr(check, "environment", lambda of: environment(of) | {"XLA_FLAGS": "--xla_gpu_autotune_level=0"})
        assert dryrun.main([PRESET, *flags]) == 0
    (row,) = json.loads((folder / "dryrun.json").read_text())["rows"]
    assert (folder / "dryrun.png").stat().st_size > 10_000
    (text,) = (file.read_text() for file in folder.glob("*.hlo"))
    return row, text


def test_fused_kernels_survive_partitioning(compiled):
    row, text = compiled
    assert f"num_partitions={DEVICES}" in text.partition("\n")[0]  # one program, which every device runs
    calls = [line for line in text.splitlines() if "mosaic_gpu_v2" in line and " custom-call(" in line]
    assert row["implementations"] == ["seed_attention: mosaic"]
    assert len(calls) == row["mosaic_calls"] == 3
    # Each works on the rows of one device, not of all.
    rows = row["capacity"]["click"]
    assert all(re.search(rf"bf16\[(\d+,)*{rows}(,\d+)*\]", line) for line in calls)


def test_memory_is_what_the_compiler_takes_and_what_shapes_say(compiled):
    row, _ = compiled
    memory = row["memory"]
    given = sum(memory[kind] for kind in memory if kind not in ("temporaries", "results beside the state", "code"))
    # What no part of the step reads, such as events that the model leaves out, is on the device, but no argument.
    assert given - memory["batch"] < row["argument_bytes"] <= given
    config = pooling_only.CONFIG
    dim, rows = config.model.embedding_dim, config.data.options.users
    schema = config.data.options.open(None, None).schema
    small = sum(table.rows for table in schema.tables.values() if table.rows < rows)
    large = -(-rows // 512) * 512 // DEVICES
    assert memory["tables"] == 4 * dim * (large + small)
    assert memory["table optimizer state"] == 4 * (large + small)
    model = nnx.eval_shape(lambda: config.model.build(schema, base_rate=(0.1,), rngs=nnx.Rngs(0)))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert memory["parameters"] == 4 * parameters == 4 * row["dense_parameters"]
    assert memory["optimizer state"] == pytest.approx(2 * memory["parameters"], abs=64)


def test_gradients_and_rows_travel(compiled):
    row, _ = compiled
    sent = {(one["kind"], one["group_size"]): one for one in row["collectives"]}
    assert set(sent) == {("all-reduce", DEVICES), ("all-to-all", DEVICES)}
    everywhere = sent["all-reduce", DEVICES]
    assert everywhere["bytes"] >= row["memory"]["parameters"]
    assert everywhere["nvlink"] == pytest.approx(2 * 7 / 8 * everywhere["bytes"])
    # Ids there, rows back; ids and gradients there, each in the room for 64 that there is at least.
    ids, rows = 4 * 64 * DEVICES, 4 * 64 * DEVICES * pooling_only.CONFIG.model.embedding_dim
    assert sent["all-to-all", DEVICES]["bytes"] <= 2 * (ids + rows)
    assert all(one["network"] == 0 for one in row["collectives"])


def test_a_row_that_is_there_is_not_compiled_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dryrun, "compiled", lambda *_: pytest.fail("compiled again"))
    monkeypatch.setattr(check, "compiler", lambda: tmp_path)
    assert dryrun.main([PRESET, "--dirty", "--out", written(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "predicted, not measured" in printed and "predicted MFU 13.3% to 40.0%" in printed
    assert (tmp_path / "dryrun.png").stat().st_size > 10_000


def test_what_does_not_fit_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check, "compiler", lambda: tmp_path)
    out = written(tmp_path, memory=ROW["memory"] | {"temporaries": 326 * 10**9})
    assert dryrun.main([PRESET, "--dirty", "--out", out]) == 1
    said = capsys.readouterr()
    assert "DOES NOT FIT" in said.out
    assert "error: pooling_only on 8 devices (1x1x8, data 8)" in said.err
    # 162.6 GB are left beside 3 GB, and 16 examples need 327.
    assert "about 7 examples a device would fit instead of 16" in said.err
    assert "needs 330.0 GB a device, and a B200 gives 165.6 GB (92% of 180)" in said.err


def test_what_fails_to_compile_is_stored_and_tried_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check, "compiler", lambda: tmp_path)
    monkeypatch.setattr(dryrun, "compiled", lambda *_: {"failed": "no such instruction"})
    out = tmp_path / "dryrun.json"
    assert dryrun.main([PRESET, "--dirty", "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert "did not compile: no such instruction" in said.out and "no such instruction" in said.err
    (row,) = json.loads(out.read_text())["rows"]
    assert row["failed"] and not out.with_suffix(".png").exists()
    monkeypatch.setattr(dryrun, "compiled", lambda *_: {k: v for k, v in ROW.items() if k != "work"})
    assert dryrun.main([PRESET, "--dirty", "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert "failed" not in row and row["mosaic_calls"] == 3


def test_what_cannot_begin_says_why(tmp_path, monkeypatch, capsys):
    for topology in ("8", "1x1x16", "1x1x1"):
        with pytest.raises(ValueError, match=f"topology is '{topology}'; it must be GROUPSxHOSTSxDEVICES"):
            dryrun.Arguments(topology=(topology,))
    with pytest.raises(ValueError, match="examples is 0"):
        dryrun.Arguments(examples=0)
    with pytest.raises(ValueError, match="there is no preset 'kunlun/huge'"):
        dryrun.config_of("kunlun/huge")
    with pytest.raises(ValueError, match="the mesh has 4 devices and the topology 8"):
        dryrun.on_mesh(pooling_only.CONFIG, MeshConfig(data=4), 8, 16)
    monkeypatch.setattr(check, "compiler", lambda: tmp_path)
    out = str(tmp_path / "dryrun.json")
    assert dryrun.main(["kunlun/huge", "--dirty", "--out", out]) == 2
    assert "error: there is no preset 'kunlun/huge'" in capsys.readouterr().err


def test_a_config_is_that_of_gpus():
    config = dryrun.on_mesh(pooling_only.CONFIG, MeshConfig(), 16, 32)
    assert (config.model.compute_dtype, config.mesh.data, config.loader.batch_size) == (np.dtype("bfloat16"), 16, 512)


def test_full_histories_are_those_that_the_loader_keeps():
    _, capacity, lengths = dryrun.histories(PRESET, 16, "full")
    assert {name: set(of) for name, of in lengths.items()} == {name: {40} for name in lengths} and len(lengths) == 3
    assert {name: capacity[name] for name in lengths} == dict.fromkeys(lengths, 16 * 40)


def test_rows_stand_in_order_of_devices():
    rows = [{"preset": "a", "lengths": "data", "examples": 8, "devices": n, "axes": {"data": n}} for n in (64, 8)]
    (found,) = series([*rows, {**rows[0], "failed": "why", "devices": 512}]).values()
    assert [row["devices"] for row in found] == [8, 64]
