"""The dry run itself: a small step compiled for eight B200s in earnest, and what is refused before that."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import dryrun
from experiments.dry_run.report import series
from kunlun_jax.parallel import MeshConfig
from tests.experiments.dry_run import pooling_only

PRESET = str(Path(pooling_only.__file__))
DEVICES = 8


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The row and the optimized HLO. Without a compiler this fails and says what to type, as all compile checks do."""
    folder = tmp_path_factory.mktemp("dryrun")
    flags = ["--dirty", "--out", str(folder / "dryrun.json"), "--keep", str(folder)]
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
    # Small arrays are moved to where alignment wants them, which the compiler counts.
    assert given <= row["argument_bytes"] <= given + 100 * 256
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


def test_a_row_that_is_there_is_not_compiled_again(compiled, tmp_path, monkeypatch, capsys):
    row, _ = compiled
    out = tmp_path / "dryrun.json"
    out.write_text(json.dumps({"rows": [row]}))
    monkeypatch.setattr(dryrun, "compiled", lambda *_: pytest.fail("compiled again"))
    assert dryrun.main([PRESET, "--dirty", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "predicted, not measured" in printed and "predicted MFU" in printed


def test_what_does_not_fit_is_refused(compiled, tmp_path, capsys):
    row, _ = compiled
    large = {**row, "memory": row["memory"] | {"temporaries": 400 * 10**9}}
    out = tmp_path / "dryrun.json"
    out.write_text(json.dumps({"rows": [large]}))
    assert dryrun.main([PRESET, "--dirty", "--out", str(out)]) == 1
    assert "error: pooling_only on 8 devices" in (said := capsys.readouterr()).err
    assert "examples a device would fit instead of 16" in said.err and "DOES NOT FIT" in said.out


def test_what_cannot_begin_says_why(tmp_path, capsys):
    for topology in ("8", "1x1x16", "1x1x1"):
        with pytest.raises(ValueError, match=f"topology is '{topology}'; it must be GROUPSxHOSTSxDEVICES"):
            dryrun.Arguments(topology=(topology,))
    with pytest.raises(ValueError, match="examples is 0"):
        dryrun.Arguments(examples=0)
    with pytest.raises(ValueError, match="there is no preset 'kunlun/huge'"):
        dryrun.config_of("kunlun/huge")
    with pytest.raises(ValueError, match="the mesh has 4 devices and the topology 8"):
        dryrun.on_mesh(pooling_only.CONFIG, MeshConfig(data=4), 8, 16)
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
