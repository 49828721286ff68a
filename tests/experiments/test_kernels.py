"""`experiments.kernels` at toy sizes: what it writes, that it continues, and what it does with what cannot run."""

import json
import math
import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from experiments import files, gpu, kernels, scaling_law
from experiments.kernel_benchmark import (
    cases,
    clock,
    implementations,
    meta_triton,
    run,
    store,
    subjects,
    torch_attention,
    tune,
    unfused,
)
from experiments.kernel_benchmark.cases import Case
from experiments.kernel_benchmark.store import Row, Store
from pallas_kernels import jagged
from pallas_kernels.mosaic import launch, target, tuning
from pallas_kernels.mosaic.config import Sm90Config
from tests.experiments.in_this_process import InThisProcess
from tests.processes import run as run_process

H100 = "NVIDIA H100 80GB HBM3"
FEW = ["--groups", "narrow", "block"]


@pytest.fixture
def here(monkeypatch):
    """`experiments.kernels` without processes."""
    monkeypatch.setattr(kernels, "Worker", InThisProcess)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Results of one run, and the folder that holds them."""
    folder = tmp_path_factory.mktemp("kernels")
    assert kernels.main([*FEW, "--out", str(folder / "kernels.json")]) == 0
    return folder, json.loads((folder / "kernels.json").read_text())


def test_every_case_pass_and_implementation_has_a_row(first):
    folder, content = first
    chosen = [case for case in cases.TOYS if case.group in FEW]
    names = {"mosaic", "xla", "unfused", "cudnn", "tokamax", "reference", "meta-triton", "flex", "sdpa"}
    names |= set(implementations.OURS)
    expected = {Row(c, p, n).name for c in chosen for p in run.PASSES for n in names}
    (block,) = (case for case in chosen if case.block)
    expected |= {Row(block, pass_, "mosaic-norms-apart").name for pass_ in run.PASSES}
    assert set(content["rows"]) == expected
    measured = [row for row in content["rows"].values() if "seconds" in row]
    assert len(measured) + len(store.unable(content["rows"].values())) == len(expected)
    for row in measured:
        assert row["seconds"] > 0 and len(row["round_seconds"]) == 5
        assert row["flops_per_second"] == pytest.approx(row["flops"] / row["seconds"])
        assert 0 < max(row["error_ratios"]) <= row["error_limit"] and not row["wrong"]
        environment = content["environments"][row["environment"]]
        assert environment["device"] == "cpu" and environment["commit"] and environment["versions"]["jax"]
    assert {row["implementation"] for row in measured} >= {"xla", "unfused", "reference"}
    assert (folder / "kernels.png").stat().st_size > 20_000


@pytest.mark.usefixtures("here")
def test_a_second_run_measures_nothing_and_prints_the_table(first, monkeypatch, capsys):
    folder, content = first
    monkeypatch.setattr(run, "measure", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(torch_attention, "measure", lambda *_: pytest.fail("measured again"))
    assert kernels.main([*FEW, "--out", str(folder / "kernels.json")]) == 0
    printed = capsys.readouterr().out
    unable = len(store.unable(content["rows"].values()))
    assert f"{len(content['rows']) - unable} rows measured, {unable} cannot run" in printed
    assert "tokamax is not installed" in printed and "give --peers.ads-kernel-library PATH" in printed
    assert "toy shapes" in printed and "0 rows are left" in printed
    assert json.loads((folder / "kernels.json").read_text())["rows"] == content["rows"]


@pytest.mark.usefixtures("here")
def test_other_sources_make_rows_old_and_a_spent_budget_leaves_them(first, monkeypatch, capsys):
    folder, content = first
    monkeypatch.setattr(store, "sources", lambda: "changed")
    assert kernels.main([*FEW, "--out", str(folder / "kernels.json"), "--budget-s", "0"]) == 0
    refused = 2 * 2  # cases and passes of Meta's without a checkout, flex and sdpa for gdpa: nothing that takes time
    assert f"{len(content['rows']) - 3 * refused} rows are left for another run" in capsys.readouterr().out


@pytest.mark.usefixtures("here")
def test_a_wrong_result_is_told(tmp_path, monkeypatch, capsys):
    right = implementations.operator
    monkeypatch.setattr(implementations, "operator", lambda *a: lambda *b: right(*a)(*b) * jnp.bfloat16(1.1))
    out = str(tmp_path / "kernels.json")
    assert kernels.main([*FEW, "--implementations", "reference", "--out", out]) == 1
    assert "WRONG" in capsys.readouterr().out


def losing(tmp_path, lost_to):
    """Results of a run that loses its worker, and how many workers' jobs it took."""
    results, case = Store(tmp_path / "kernels.json", "cpu"), next(x for x in cases.TOYS if x.group == "narrow")
    results.content["peaks"] = {"matmul_flops_per_second": 1e9}
    worker = InThisProcess(lost_to=lost_to)
    groups = [[Row(case, pass_, name) for pass_ in run.PASSES for name in ("xla", "unfused")]]
    deadline = time.monotonic() + 60
    assert run.measure_groups(groups, results, worker, run.measure, (5, True), deadline, kernel_clock=True) == 0
    rows = json.loads((tmp_path / "kernels.json").read_text())["rows"].values()
    return {(row["pass"], row["implementation"]): row for row in rows}, worker.jobs, results.content


def test_a_call_that_takes_the_worker_with_it_costs_no_other_its_row(tmp_path):
    lost = ("backward", "xla")
    rows, jobs, _ = losing(tmp_path, lambda items: [x[1:] for x in items] == [lost])
    assert jobs == 2 and len(rows) == 4
    for name, row in rows.items():
        if name == lost:
            assert row["cannot_run"] == "its process ended with -11 (SIGSEGV)"
        else:
            assert row["seconds"] > 0 and row["no_kernel_seconds"] == "no GPU" and not row["wrong"]


def test_the_clock_of_kernels_is_not_asked_again_once_it_took_the_worker_with_it(tmp_path):
    rows, jobs, content = losing(tmp_path, lambda items: items == (run.KERNEL_CLOCK,))
    reasons = [rows[key].pop("no_kernel_seconds") for key in rows]
    assert jobs == 2 and all(row["seconds"] > 0 and row["kernel_seconds"] is None for row in rows.values())
    assert reasons[0] == "CUPTI did not come back" and set(reasons[1:]) == {content["no_kernel_clock"]}
    assert "CUPTI was asked, and its process ended with -11" in reasons[1]


def test_rows_that_could_not_run_are_tried_again_where_asked(tmp_path):
    results, row = Store(tmp_path / "kernels.json", "cpu"), Row(cases.TOYS[0], "forward", "xla")
    assert results.lacks(row, False)
    results.put(row, {"cannot_run": "why"})
    results = Store(tmp_path / "kernels.json", "cpu")
    assert not results.lacks(row, False) and results.lacks(row, True)
    results.put(row, {"seconds": 1.0})
    assert not results.lacks(row, True) and Store(tmp_path / "kernels.json", "cpu", fresh=True).lacks(row, False)
    with pytest.raises(ValueError, match="has results of 'cpu', and this is 'gpu'"):
        Store(tmp_path / "kernels.json", "gpu")


def test_what_is_not_measured_says_why(tmp_path):
    narrow, seeds = (next(case for case in cases.TOYS if case.group == name) for name in ("narrow", "seeds"))
    for case, name, library, why in (
        (narrow, "meta-triton", None, "not asked for: give --peers.ads-kernel-library PATH"),
        (narrow, "meta-triton", tmp_path, "give a checkout of ads_model_kernel_library"),
        (seeds, "meta-triton", Path(__file__).parent, "give a checkout of ads_model_kernel_library"),
        (narrow, "flex", None, "it is not measured for gdpa"),
    ):
        assert why in (torch_attention.refusal(Row(case, "forward", name), library) or "")
    (tmp_path / meta_triton.FILE).parent.mkdir(parents=True)
    (tmp_path / meta_triton.FILE).touch()
    assert torch_attention.refusal(Row(narrow, "forward", "meta-triton"), tmp_path) is None
    refused = torch_attention.refusal(Row(seeds, "forward", "meta-triton"), tmp_path)
    assert refused == "it is not measured for seed_attention"
    assert torch_attention.refusal(Row(seeds, "forward", "sdpa"), None) is None


def test_metas_library_is_found_under_the_name_that_it_has_for_itself(tmp_path, monkeypatch):
    path = tmp_path / meta_triton.FILE
    path.parent.mkdir(parents=True)
    path.write_text("from .math import answer\ndef generalized_dot_product_attention(): return answer\n")
    (path.parent / "math.py").write_text("from ads_mkl.ops.oss.gdpa.triton.other import answer\n")
    (path.parent / "other.py").write_text("answer = 42\n")
    for name in [name for name in sys.modules if name.startswith("ads_mkl")]:
        monkeypatch.delitem(sys.modules, name)
    assert meta_triton.load(tmp_path)() == 42
    for name in [name for name in sys.modules if name.startswith("ads_mkl")]:
        del sys.modules[name]


def test_lengths_and_costs_are_those_of_the_published_tables():
    full, half = Case("self", 1152, 512, 1.0), Case("self", 1152, 512, 0.5)
    assert (full.lengths() == 512).all()
    assert half.lengths().min() < 10 and half.lengths().max() <= 512 and abs(half.lengths().mean() - 256) < 15
    assert full.cost(full.lengths()).forward_flops == 4 * 4 * 128 * 1152 * 512**2
    assert len({case.name for case in cases.CASES}) == len(cases.CASES) == 43
    assert {case.group for case in cases.TOYS} <= {case.group for case in cases.CASES}


@pytest.mark.parametrize("case", [c for c in cases.TOYS if c.max_length == 24], ids=lambda case: case.group)
def test_what_serves_as_truth_is_the_definition(case):
    """Against loops over examples and heads on plain slices, in float64."""
    problem = cases.problem(case)
    examples = np.arange(case.batch)
    operands, _, lengths = unfused.padded(problem, examples, 24)
    found = unfused.attend(case, *(x.astype(jnp.float32) for x in operands), lengths=lengths)
    erf = np.vectorize(math.erf)
    acts = {"gelu": lambda x: x * (1 + erf(x / 2**0.5)) / 2, "silu": lambda x: x / (1 + np.exp(-x))}
    acts["softmax"] = lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    q, k, v = (np.asarray(x, np.float64) for x in problem.operands)
    residual = q
    if case.block:
        q = (q - q.mean((1, 2), keepdims=True)) / np.sqrt(q.var((1, 2), keepdims=True) + 1e-5)
    for b, (start, n) in enumerate(zip(problem.host_splits, case.lengths(), strict=False)):
        rows = slice(start, start + n)
        own = [
            x[rows] if packed else x if x.ndim == 3 else x[b]
            for x, packed in zip((q, k, v), problem.packed[:3], strict=True)
        ]
        exact = np.empty((len(own[0]), case.heads, case.dim))
        for head in range(case.heads):
            scores = own[0][:, head] @ own[1][:, head].T / np.sqrt(case.dim)
            if case.window is not None:
                offset = np.subtract.outer(np.arange(n), np.arange(n))
                scores = np.where(np.abs(offset) <= case.window[0], scores, -np.inf)
            exact[:, head] = acts[case.activation](scores) @ own[2][:, head]
        if case.block:
            exact += own[0]
            exact = exact / np.sqrt((exact**2).mean((1, 2), keepdims=True) + 1e-5) + residual[rows]
        np.testing.assert_allclose(found[b, : len(exact)], exact, rtol=0, atol=2e-5)


def test_padded_rows_are_those_of_the_packed_ones():
    values = jnp.arange(24.0)[:, None]
    padded = unfused.pad(values, np.array([0, 8, 16]), np.array([3, 8, 1]), 8)
    np.testing.assert_array_equal(padded[..., 0], [[0, 1, 2, 0, 0, 0, 0, 0], range(8, 16), [16, 0, 0, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize(("seconds", "calls"), [(1e-6, 200), (1e-3, 20), (5e-3, 10), (0.1, 2)])
def test_short_calls_run_in_a_row(seconds, calls):
    assert clock.calls_in_a_row(seconds) == calls


def test_bad_flags():
    with pytest.raises(ValueError, match="rounds is 3"):
        kernels.Arguments(rounds=3)
    with pytest.raises(ValueError, match=r"groups names \['pfn'\]"):
        kernels.Arguments(groups=("pfn",))
    with pytest.raises(ValueError, match=r"implementations names \['cuda'\]"):
        kernels.Arguments(implementations=("cuda",))
    with pytest.raises(ValueError, match=r"mosaic-norms-apart alone, which only groups \['block'\] have.*\['window'\]"):
        kernels.Arguments(implementations=("mosaic-norms-apart",), groups=("window",))
    kernels.Arguments(implementations=("mosaic-norms-apart",), groups=("window", "block"))


def test_tuning_takes_the_fastest_that_is_right_and_continues(tmp_path, monkeypatch):
    """With a stand-in for the kernel: larger blocks are slower, and blocks of 32 give a wrong result."""
    shape = Case("tune", 4, 16, 0.5, keys=16, dim=32, heads=2)
    monkeypatch.setattr(tune, "MOST", 8)
    monkeypatch.setattr(tuning, "candidates", lambda *_: iter([Sm90Config(block=b) for b in (128, 32, 64)]))
    times = []

    def take_turns(calls, rounds):
        return {name: clock.Times([times.pop(0)] * rounds, 10, 0.0) for name in calls}

    def build(problem, configs):
        factor = 3.0 if Sm90Config(block=32) in configs.values() else 1.0
        operator = implementations.operator(problem.case, "reference")
        return subjects.on_packed(problem, lambda *x: operator(*x) * jnp.bfloat16(factor))

    monkeypatch.setattr(clock, "take_turns", take_turns)
    arguments = {"device": "cpu", "generation": "sm90", "build": build, "shapes": (shape,)}
    worker = InThisProcess()
    tuner = tune.Tuner(tmp_path / "tuning.json", tmp_path, **arguments)
    todo = tuner.plan()
    assert [(key.pass_, config.block) for _, key, config in todo[:4]] == [
        ("forward", 128),
        ("dq", 128),
        ("dkv", 128),
        ("forward", 32),
    ]
    forward = [item for item in todo if item[1].pass_ == "forward"]
    times[:] = [0.004, 0.001, 0.002]  # the default; then 64, half as long as the default in its turn
    for item in forward[:2]:
        tuner.measure(*item, worker)
    tuner = tune.Tuner(tmp_path / "tuning.json", tmp_path, **arguments)
    assert len(tuner.plan()) == len(todo) - 2
    tuner.measure(*forward[2], worker)
    key = forward[0][1]
    assert tuning.config_for(key, "cpu", tmp_path / "gdpa" / "tuning") == Sm90Config(block=64)
    assert "wrong" in tuner.measured("gdpa", key)[1]["cannot_run"] and "cannot run: gdpa forward d32" in tuner.table()
    (entry,) = json.loads((tmp_path / "gdpa/tuning/cpu.json").read_text())["entries"]
    assert entry["seconds"] == 0.001 and entry["default_seconds"] == 0.002
    lost = next(item for item in todo if item[1].pass_ == "dq")
    tuner.measure(*lost, InThisProcess(lost_to=lambda _: True))
    assert tuner.measured("gdpa", lost[1])[0]["cannot_run"].startswith("its process ended with -11")


class Asked(Exception):
    """Ends a trace where the operator asks for its block sizes."""


@pytest.mark.parametrize("case", tune.SHAPES, ids=lambda case: case.name)
def test_kinds_of_shapes_are_those_that_the_operators_look_up(case, monkeypatch):
    """What a tuned file holds for a shape of `SHAPES` is what the operator asks for when it runs on it."""

    def configs_for(operator, chip, dtype, dim, keys, activation, override=None):
        held = tuning.JAGGED if keys is None else keys
        asked = tuning.Key("dq", dim, held, tuning.activation_class(activation), jnp.dtype(dtype).name)
        raise Asked(operator, asked)

    monkeypatch.setattr(launch, "configs_for", configs_for)
    rows = jax.ShapeDtypeStruct((int(jagged.aligned(case.lengths()).sum()), case.heads, case.dim), jnp.bfloat16)
    q = jax.ShapeDtypeStruct((case.seeds, *rows.shape[1:]), jnp.bfloat16) if case.seeds else rows
    k = jax.ShapeDtypeStruct((case.batch, case.keys, *rows.shape[1:]), jnp.bfloat16) if case.keys else rows
    offsets = (jax.ShapeDtypeStruct((n,), jnp.int32) for n in (case.batch + 1, case.batch))
    with target.build_for(target.Target("sm90", 132, device_kind=H100)), pytest.raises(Asked) as asked:
        jax.eval_shape(implementations.operator(case, "mosaic"), q, k, k, *offsets)
    assert asked.value.args == (case.operator, tune.key_of(case, "dq"))


def test_every_kind_of_shape_has_a_truth():
    for case in tune.SHAPES:
        rows = unfused.TRUTH_ROWS if case.operator == "gdpa" else -(-case.max_length // 8) * 8
        assert unfused.scores_bytes(case, cases.SUBSET, rows) <= unfused.MOST_SCORES, case


def test_a_short_budget_tunes_every_operator(tmp_path):
    plan = tune.Tuner(tmp_path / "tuning.json", tmp_path, "cpu", "sm90").plan()
    first = {(case.operator, key.pass_) for case, key, _ in plan[: tune.FIRST * len(tuning.PASSES)]}
    assert first == {(operator, pass_) for operator in implementations.APIS for pass_ in tuning.PASSES}


def test_each_operator_gets_a_tuning_file_of_its_own(tmp_path, monkeypatch):
    shapes = (
        Case("tune", 2, 16, 0.5, seeds=11),
        Case("tune", 2, 16, 0.5, window=(5, 5)),
    )
    tuner = tune.Tuner(tmp_path / "tuning.json", tmp_path, "cpu", "sm90", shapes=shapes)
    assert len({tune.key_of(case, "forward") for case in shapes}) == 1
    for case, block in zip(shapes, (32, 96), strict=True):
        entry = {"config": {"block": block, "stages": 2}, "seconds": 0.001, "relative": 0.5}
        tuner.measured(case.operator, tune.key_of(case, "forward")).append(entry)
    tuner.write()
    for case, block in zip(shapes, (32, 96), strict=True):
        folder = tmp_path / case.operator / "tuning"
        assert tuning.config_for(tune.key_of(case, "forward"), "cpu", folder) == Sm90Config(block=block)
    assert "window_attention forward d128 keys 11 softmax bfloat16" in tuner.table()


@pytest.mark.usefixtures("here")
def test_tuning_without_a_gpu_says_so(tmp_path, capsys):
    assert kernels.main(["tune", "--out", str(tmp_path / "tuning.json")]) == 1
    assert "cannot tune: device 'cpu': Mosaic kernels are for Hopper" in capsys.readouterr().err


def test_a_piece_that_fails_or_hangs_does_not_keep_the_next_from_running(tmp_path, monkeypatch, capfd):
    pieces = (
        gpu.Piece("fails", ("no_such_module",), 30),
        gpu.Piece("hangs", ("hang",), 2),
        gpu.Piece("passes", ("this",), 30),
        gpu.Piece("named", ("this",), 30, named=True),
    )
    monkeypatch.setattr(gpu, "pieces", lambda library: pieces)
    hang = tmp_path / "hang.py"
    hang.write_text("import time\nprint('begun', flush=True)\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert gpu.main(["--logs", str(tmp_path / "logs")]) == 1
    summary = capfd.readouterr().out.split("=== summary")[1]
    assert "FAILED: exit code 1, see fails.log" in summary and "FAILED: ended at its limit of 2 s" in summary
    assert "s  passed" in summary and "named" not in summary
    assert "begun" in (tmp_path / "logs" / "hangs.log").read_text()


def test_the_pieces_take_nine_minutes_at_most():
    pieces = {piece.name: piece for piece in gpu.pieces(Path("library"))}
    names = ["contract-gdpa", "contract-softmax", "tune", "kernels", "peers", "scaling"]
    assert list(pieces)[: len(names)] == names and {"contract-operators", "contract-others"} <= set(pieces)
    assert sum(piece.limit_s for piece in pieces.values() if not piece.named) <= 540
    law = pieces["scaling_law"]
    arguments = tyro.cli(scaling_law.Arguments, args=list(law.command[1:]))
    assert law.named and 60 * scaling_law.BUDGETS[arguments.budget].minutes < law.limit_s <= 540
    paths = [part for piece in pieces.values() for part in piece.command if part.startswith("tests/")]
    assert len(paths) == 7 and all((gpu.REPOSITORY / path).exists() for path in paths)
    assert pieces["peers"].command[-2:] == ("--peers.ads-kernel-library", "library")
    changes = gpu.environment(pieces["contract-softmax"], Path("logs"))
    assert changes["JAX_DEFAULT_MATMUL_PRECISION"] == "highest"
    assert changes["KUNLUN_PASSED_TESTS"] == str(Path("logs/contract-softmax.tests"))
    assert "KUNLUN_PASSED_TESTS" not in gpu.environment(pieces["tune"], Path("logs"))
    for piece in pieces.values():
        if piece.command[0] == "experiments.kernels":
            tyro.cli(kernels.Arguments, args=list(piece.command[1:]))


def test_sources_are_other_ones_when_a_file_has_another_name_or_content(tmp_path):
    first = tmp_path / "first.py"
    first.write_text("1")
    known = {files.digest(tmp_path), files.digest(tmp_path, tmp_path)}
    first.write_text("2")
    known.add(files.digest(tmp_path))
    first.rename(tmp_path / "second.py")
    known.add(files.digest(tmp_path))
    (tmp_path / "notes.md").write_text("no source")
    assert len(known) == 4 and files.digest(tmp_path) in known


def test_a_test_that_passed_is_not_run_again_for_the_same_sources(tmp_path):
    """One passes, one fails, and one takes the process with it, as the end of a piece's time does."""
    (tmp_path / "test_some.py").write_text(
        "import os\nfrom pathlib import Path\n\nhere = Path(__file__).parent\n\n"
        "def test_passes(): pass\n\n"
        "def test_fails(): assert (here / 'mended').exists()\n\n"
        "def test_dies(): (here / 'mended').exists() or os._exit(9)\n"
    )
    command = [sys.executable, "-m", "pytest", "-v", "-p", "experiments.passed_tests", "-p", "no:cacheprovider"]
    command += ["-c", os.devnull, "--rootdir", "."]

    def run_with(sources, file="test_some.py"):
        paths = [str(gpu.REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        changes = {"KUNLUN_PASSED_TESTS": str(tmp_path / "tests"), "KUNLUN_SOURCES": sources}
        changes["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        environment = os.environ | changes | {"PYTHONPATH": os.pathsep.join(paths)}
        done = run_process([*command, file], cwd=tmp_path, env=environment)
        return done.returncode, done.stdout

    assert run_with("one")[0] == 9
    assert (tmp_path / "tests").read_text() == "one\ntest_some.py::test_passes\n"
    (tmp_path / "mended").touch()
    code, printed = run_with("one")
    assert code == 0 and "2 passed, 1 deselected" in printed
    code, printed = run_with("one")
    assert code == 0 and "3 deselected" in printed
    (tmp_path / "test_nothing.py").touch()
    assert run_with("one", "test_nothing.py")[0] == pytest.ExitCode.NO_TESTS_COLLECTED
    code, printed = run_with("two")
    assert code == 0 and "3 passed" in printed
