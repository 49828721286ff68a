"""Attention of others beside ours, as far as a CPU can tell: the calls are right, the refusals say why."""

import dataclasses
import importlib.machinery
import json
import sys
import time
import types
from typing import Any, cast

import jax
import numpy as np
import pytest

from experiments import kernels
from experiments.kernel_benchmark import (
    cases,
    clock,
    implementations,
    libraries,
    meta_triton,
    report,
    run,
    subjects,
    torch_attention,
    unfused,
)
from experiments.kernel_benchmark import scaling as scaling_module
from experiments.kernel_benchmark.cases import Case
from experiments.kernel_benchmark.store import Row, Store
from experiments.kernel_benchmark.worker import CannotRun, Message
from tests.experiments.in_this_process import InThisProcess

SEEDS = Case("seeds", 4, 24, 0.5, seeds=4, dim=32)
WINDOW = Case("window", 4, 40, 0.5, window=(5, 3), dim=32, heads=2)
CAUSAL = Case("window", 4, 40, 0.5, window=(6, 0), dim=32, heads=2)
WHOLE = Case("window", 4, 40, 0.5, window=(64, 64), dim=32, heads=2)
FULL = Case("window", 3, 40, 1.0, window=(6, 0), dim=32, heads=2)


@pytest.fixture
def lenient():
    """JAX as it is by default: `jax.nn` promotes dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def ratios(problem, subject):
    """Errors of a subject in units of plain bf16's, forward and backward."""
    truth = unfused.truth(problem)
    assert truth is not None
    for pass_, limit in run.ERROR_LIMIT.items():
        found = subject.error_ratios(pass_, subject.call(pass_)(), truth)
        assert len(found) == len(truth["float32"][pass_])
        yield max(found) / limit


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("case", [SEEDS, CAUSAL, WHOLE, FULL], ids=["seeds", "causal", "whole", "full"])
def test_what_cudnn_is_asked_for_is_the_same_function(case):
    """By the XLA program of the same call; both bounds are inclusive."""
    problem = cases.problem(case)
    call, note, same = libraries.by_jax(case, "xla", full=case is FULL)
    assert same and not note
    assert all(ratio <= 1 for ratio in ratios(problem, subjects.on_padded(problem, call, 0)))


@pytest.mark.usefixtures("lenient")
def test_a_window_that_cudnn_cannot_do_is_full_attention_and_says_so():
    call, note, same = libraries.by_jax(WINDOW, "xla")
    assert not same and note == "does not skip: full attention, the window left out"
    problem = cases.problem(WINDOW)
    operands, _, lengths = unfused.padded(problem, np.arange(4), 40)
    whole = libraries.by_jax(WHOLE, "xla")[0]
    np.testing.assert_array_equal(call(*operands, lengths), whole(*operands, lengths))
    with pytest.raises(CannotRun, match="cuDNN needs an NVIDIA GPU"):
        implementations.build("cudnn", problem)


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("case", [SEEDS, WINDOW], ids=["seeds", "window"])
def test_tokamax_gets_lengths_the_window_and_whole_tiles(case, monkeypatch):
    """With a stand-in that is `jax.nn`'s XLA attention under tokamax's name."""

    def attention(q, k, v, *, implementation, **options):
        assert implementation == "mosaic" and k.shape[1] % 128 == 0
        assert options.get("local_window_size") == case.window
        return jax.nn.dot_product_attention(q, k, v, **options)

    library = types.ModuleType("tokamax")
    library.__spec__ = importlib.machinery.ModuleSpec("tokamax", None)
    vars(library)["dot_product_attention"] = attention
    monkeypatch.setitem(sys.modules, "tokamax", library)
    problem = cases.problem(case)
    subject = implementations.build("tokamax", problem)
    assert subject.same and "padded to the longest" in subject.note
    assert all(ratio <= 1 for ratio in ratios(problem, subject))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("case", [SEEDS, WINDOW, CAUSAL, FULL], ids=["seeds", "window", "causal", "full"])
@pytest.mark.parametrize("name", ["flex", "sdpa"])
def test_attention_of_pytorch_is_the_same_function(case, name):
    """Uncompiled on the CPU, where flex_attention has no backward pass."""
    torch = pytest.importorskip("torch")
    operands, cotangent = torch_attention.inputs(torch, case, "cpu")
    if name == "flex":
        kernel = torch_attention.Flex(torch, case, operands, cotangent, compiled=False, differentiable=False)
    else:
        kernel = torch_attention.Padded(torch, case, operands, cotangent)
    results = results_of(torch, case, kernel, operands, cotangent, name)
    for pass_ in run.PASSES[: 1 if name == "flex" else 2]:
        assert results[pass_]["seconds"] == 1e-3 and kernel.note in results[pass_]["note"]
        assert 0 < max(results[pass_]["error_ratios"]) <= run.ERROR_LIMIT[pass_], results
    assert ("cannot_run" in results["backward"]) == (name == "flex")


def results_of(torch, case, kernel, operands, cotangent, name):
    """Results of a kernel by pass, each announced first."""
    rows = [Row(case, pass_, name) for pass_ in run.PASSES]
    bench = lambda call, **_: 1.0  # noqa: E731
    messages = list(torch_attention.time_passes(torch, bench, kernel, operands, cotangent, rows))
    assert messages[::2] == [Message((row,)) for row in rows]
    return {message.items[0].pass_: cast(dict[str, Any], message.result) for message in messages[1::2]}


def test_an_example_of_too_many_scores_has_no_error():
    case = Case("window", 1, 32768, 1.0, window=(1024, 0), heads=16)
    assert torch_attention.error_ratios(None, case, None, (), None, [None]) is None


@pytest.mark.parametrize("keys", [16, None], ids=["pffn", "self"])
@pytest.mark.parametrize("activation", ["gelu", "relu_squared"])
def test_metas_gdpa_gets_offsets_and_is_compared(keys, activation, tmp_path, monkeypatch):
    """With a stand-in for their library that loops over examples."""
    torch = pytest.importorskip("torch")
    case = Case("self", 4, 24, 0.5, keys=keys, dim=32, heads=2, activation=activation)

    def library(query, key, value, query_offset, key_offset, output_offset, activation, qk_scale, **lengths):
        assert lengths == {"max_seq_len_q": 24, "max_seq_len_kv": keys or 24} and output_offset is query_offset
        act = {"gelu": torch.nn.functional.gelu, "relu_square": lambda x: torch.relu(x) ** 2}[activation]
        parts = []
        for b in range(case.batch):
            q = query[query_offset[b] : query_offset[b + 1]].float()
            k, v = (x[key_offset[b] : key_offset[b + 1]].float() for x in (key, value))
            parts.append(torch.einsum("hqk,khd->qhd", act(torch.einsum("qhd,khd->hqk", q, k) * qk_scale), v))
        return torch.cat(parts).bfloat16(), None

    monkeypatch.setattr(meta_triton, "load", lambda path: library)
    operands, cotangent = torch_attention.inputs(torch, case, "cpu")
    kernel = meta_triton.Kernel(torch, case, operands, cotangent, tmp_path)
    results = results_of(torch, case, kernel, operands, cotangent, "meta-triton")
    for pass_, limit in run.ERROR_LIMIT.items():
        assert len(results[pass_]["error_ratios"]) == (1 if pass_ == "forward" else 3)
        assert 0 < max(results[pass_]["error_ratios"]) <= limit, results
    with pytest.raises(CannotRun, match="it has no activation 'leaky_relu'"):
        meta_triton.Kernel(torch, dataclasses.replace(case, activation="leaky_relu"), operands, cotangent, tmp_path)


@pytest.mark.parametrize("seeds", [None, 96], ids=["window", "seeds"])
@pytest.mark.parametrize("window", [(100, 100), (300, 0), (0, 0), (10**6, 10**6)])
def test_the_block_mask_holds_the_tiles_that_are_needed(seeds, window):
    torch = pytest.importorskip("torch")
    lengths = [130, 1, 700, 64, 255]
    case = types.SimpleNamespace(lengths=lambda: lengths, window=window, seeds=seeds)
    low, high, rows = torch_attention.ranges(torch, case)
    partly, whole = (x.numpy() for x in torch_attention.blocks(torch, low, high, rows))
    key = np.arange(rows)
    mask = (key >= low.numpy()[:, None]) & (key <= high.numpy()[:, None])
    example = np.repeat(np.arange(5), lengths)
    if seeds is None:
        at = np.arange(len(example))
        offset = at - at[:, None]
        exact = (example == example[:, None]) & (offset >= -window[0]) & (offset <= window[1])
    else:
        exact = np.repeat(np.arange(5), seeds)[:, None] == example
    np.testing.assert_array_equal(mask[: len(exact), : len(example)], exact)
    tiles = mask.reshape(len(low) // 128, 128, rows // 128, 128)
    np.testing.assert_array_equal(whole, tiles.all((1, 3)))
    assert (partly | whole)[tiles.any((1, 3))].all() and not (partly & whole).any()
    # Only the tile of queries that fills up may read more than it needs.
    np.testing.assert_array_equal((partly | whole)[:-1], tiles.any((1, 3))[:-1])


def test_pytorch_without_a_gpu_says_so_in_every_row():
    rows: list[Row] = [Row(WINDOW, pass_, name) for pass_ in run.PASSES for name in ("flex", "sdpa")]
    ((items, result, _),) = torch_attention.measure(rows, None)
    assert items == tuple(rows) and result is not None
    assert result["cannot_run"] in (
        "RuntimeError: torch sees no CUDA device",
        "ModuleNotFoundError: No module named 'torch'",
    )


def test_a_result_of_another_library_is_rated_as_ours_are(tmp_path):
    """Without a cost of its own, and without an error where the scores are too many."""
    results = Store(tmp_path / "kernels.json", "NVIDIA H100 80GB HBM3")
    results.content["peaks"] = {"matmul_flops_per_second": 1e12}

    def job(rows):
        for row in rows:
            yield Message((row,), {"seconds": 0.5, "error_ratios": None, "note": "here", "no_error_ratio": "many"})

    groups = [[Row(WINDOW, "forward", "sdpa")]]
    assert run.measure_groups(groups, results, InThisProcess(), job, (), time.monotonic() + 60) == 0
    (row,) = results.rows.values()
    assert row["flops"] == WINDOW.cost(WINDOW.lengths()).forward_flops and row["examples"] == 4
    assert row["flops_per_second"] == 2 * row["flops"] == row["share_of_matmul"] * 1e12
    assert not row["wrong"] and row["same_function"] and row["no_error_ratio"] == "many"
    assert row["share_of_roofline"] == pytest.approx(row["roofline_seconds"] / 0.5)


@pytest.mark.slow
def test_an_exponent_is_fitted_and_drawn(tmp_path, monkeypatch, capsys):
    chosen = scaling_module.cases_for(True)
    content = {"device": "cpu", "rows": {}}
    for case in chosen:
        assert case.window is not None
        seconds = 1e-6 * case.max_length * min(201, case.max_length if case.window[0] > 100 else 201)
        row = {"case": case.name, "implementation": "xla", "pass": "forward"}
        row |= {"seconds": 2 * seconds, "fastest_seconds": seconds}
        content["rows"][case.name] = row | {"max_length": case.max_length}
    fits = {fit["window"]: fit for fit in scaling_module.fits(content)}
    assert fits["window"]["exponent"] == pytest.approx(1) and fits["window"]["lengths"][-1] == 8192
    assert fits["window"]["seconds_at_1024"] == pytest.approx(1e-6 * 1024 * 201)
    assert "length ^ 1.000 over 512 to 8192 rows, no time further than 0% off" in scaling_module.table(content)
    small = tuple(case for case in chosen if case.max_length <= 512)
    monkeypatch.setattr(scaling_module, "cases_for", lambda _: small)
    monkeypatch.setattr(clock, "calls_in_a_row", lambda _: 1)
    monkeypatch.setattr(kernels, "Worker", InThisProcess)
    assert kernels.main(["scaling", "--out", str(tmp_path / "window_scaling.json")]) == 0
    written = json.loads((tmp_path / "window_scaling.json").read_text())
    assert {row["pass"] for row in written["rows"].values()} == {"forward", "backward"} and written["fits"] == []
    assert all(row["fastest_seconds"] <= row["seconds"] for row in written["rows"].values())
    assert (tmp_path / "window_scaling.png").stat().st_size > 10_000 and "no statement about" in capsys.readouterr().out


def test_ours_is_compared_with_the_fastest_peer_that_counts():
    def row(implementation, rate, operator="window_attention", same=True, wrong=False):
        fields = {"case": operator, "pass": "forward", "operator": operator, "implementation": implementation}
        return fields | {"flops_per_second": rate, "same_function": same, "wrong": wrong, "note": "n"}

    rows = [row("mosaic", 6.0), row("xla", 9.0), row("sdpa", 1.0), row("flex", 2.0), row("cudnn", 3.0, same=False)]
    assert report.ahead(rows)[1:] == ["  window_attention, forward: mosaic 2.00 x cudnn, another function (n)"]
    assert report.ahead(rows[:-1])[1:] == ["  window_attention, forward: mosaic 3.00 x flex (n)"]
    assert report.ahead([row("mosaic", 6.0, wrong=True), *rows[2:]]) == []
    gdpa = [row("mosaic", 6.0, "gdpa"), row("tokamax", 9.0, "gdpa", same=False), row("meta-triton", 4.0, "gdpa")]
    assert report.ahead(gdpa)[1:] == ["  gdpa, forward: mosaic 1.50 x meta-triton (n)"]
