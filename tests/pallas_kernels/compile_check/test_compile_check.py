"""The compile check: what it reads, what it calls a fault, and a selection of the catalogue compiled in earnest."""

import dataclasses
import functools
import importlib
import json
import math
from pathlib import Path

import pytest

from pallas_kernels.chips import B200, H100, Chip
from pallas_kernels.compile_check import catalogue, check
from pallas_kernels.compile_check.catalogue import CHIPS, Case
from pallas_kernels.compile_check.report import allocated_columns, parse
from pallas_kernels.compile_check.sass import Loop, compute_loop
from pallas_kernels.compile_check.worker import description
from pallas_kernels.mosaic import sm90, sm100
from pallas_kernels.mosaic.activations import KERNEL_ACTIVATIONS
from pallas_kernels.mosaic.config import Sm90Config

CASES = {chip.name: {case.name: case for case in catalogue.cases(chip)} for chip in (H100, B200)}


def pick(chip: Chip, direction: str, dim: int, dtype: str = "bfloat16") -> Case:
    """The first such case of the catalogue."""
    return next(c for c in CASES[chip.name].values() if (c.direction, c.dim, c.dtype) == (direction, dim, dtype))


ONE_OF_EACH = [
    (chip, pick(chip, *what))
    for chip, *what in (
        (H100, "forward", 128),
        (H100, "dq", 64),
        (H100, "dkv", 128, "float16"),
        (B200, "forward", 128, "float16"),
        (B200, "dq", 128),
        (B200, "dkv", 64),
    )
]
FORWARD = pick(H100, "forward", 64)

SERIALIZED = "wgmma.mma_async instructions are serialized due to insufficient register resources in function 'kernel'"


def disassembly(tanh: int) -> str:
    """A loop of so many MUFU and a branch back, as nvdisasm prints it."""
    body = "        /*0010*/                   MUFU.TANH R44, R6 ;\n" * tanh
    return f"""\t.section\t.text.entry_mosaic_gpu_kernel,"ax",@progbits
.L_x_0:
{body}        /*0800*/               @P0 BRA `(.L_x_0) ;
        /*0810*/                   EXIT ;
"""


def report(
    stores=0, loads=0, registers=168, threads=384, dynamic=196712, columns=0, note="", architecture="sm_90a", sass=None
):
    """What the compiler prints of one kernel, other lines left out."""
    sass = disassembly(64) if sass is None else sass
    return f"""
Resources(smem_scratch_bytes=196608, tmem_scratch_cols={columns}, tmem_collective_scratch_cols=0, ...)
ptxas info    : 0 bytes gmem
{note}ptxas info    : Compiling entry function 'entry_mosaic_gpu_kernel' for '{architecture}'
ptxas info    : Function properties for entry_mosaic_gpu_kernel
    {stores} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used {registers} registers, used 16 barriers, 1 bytes smem
ptxas info    : Compile time = 153.147 ms
{sass}declare i32 @mosaic_gpu_launch_kernel(ptr, i32, i32, i32, i32, i32, i32, i32, i32, i32, i32, i32, ptr, ptr)
  %420 = call i32 @mosaic_gpu_launch_kernel(ptr %0, i32 132, i32 1, i32 1, i32 0, i32 0, i32 0, i32 {threads}, i32 1, \
i32 1, i32 {dynamic}, i32 0, ptr %1, ptr %413)
"""


# --- the report ---


def test_a_report_is_read():
    (kernel,) = parse(report(columns=160, architecture="sm_100a"))
    assert (kernel.registers, kernel.threads, kernel.shared_memory) == (168, 384, 196713)
    assert (kernel.spill_stores, kernel.spill_loads, kernel.stack) == (0, 0, 0)
    assert kernel.tensor_memory_columns == 256
    assert kernel.faults(B200) == []
    kinds = {"control": 1, "mufu": 64}
    assert kernel.loops == (Loop(65, kinds, kinds),)


def test_two_kernels_in_one_output():
    first, second = parse(report() + report(stores=24, loads=28, registers=128))
    assert (first.registers, first.spill_loads, first.faults(H100)) == (168, 0, [])
    assert (second.registers, second.spill_stores, second.spill_loads) == (128, 24, 28)


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        ({"stores": 320, "loads": 324}, "spills: 320 bytes of stores, 324 of loads"),
        ({"loads": 4}, "spills: 0 bytes of stores, 4 of loads"),
        ({"registers": 176}, "67584 registers in a block, of 65536"),
        ({"dynamic": 227 * 1024}, "232449 bytes of shared memory, of 232448"),
        ({"columns": 16}, "32 columns of tensor memory, of 0"),
        ({"architecture": "sm_90"}, "compiled for sm_90, not sm_90a"),
        ({"note": f"ptxas info    : (C7510) Potential Performance Loss: {SERIALIZED}\n"}, SERIALIZED),
    ],
)
def test_a_fault_is_named_with_its_limit(made, fault):
    (kernel,) = parse(report(**made))
    assert kernel.faults(H100) == [fault]


def test_too_many_columns_of_tensor_memory():
    (kernel,) = parse(report(columns=520, architecture="sm_100a"))
    assert kernel.faults(B200) == ["1024 columns of tensor memory, of 512"]
    assert [allocated_columns(n) for n in (0, 1, 32, 33, 512)] == [0, 32, 32, 64, 512]


def test_an_output_without_a_whole_report_is_refused():
    with pytest.raises(ValueError, match="no kernel"):
        parse("ptxas info    : 0 bytes gmem")
    with pytest.raises(ValueError, match="2 reports of ptxas, 1 launches"):
        parse(report() + "ptxas info    : Compiling entry function 'entry' for 'sm_90a'\n")
    with pytest.raises(ValueError, match="cannot read"):
        parse(report().replace("Used 168 registers", "no registers"))
    with pytest.raises(ValueError, match="no disassembly"):
        parse(report(sass=""))


# --- chips and catalogue ---


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_a_chip_agrees_with_its_description(chip):
    text = description(chip)
    for field in (
        f'name: "{chip.device_kind}"',
        f"core_count: {chip.multiprocessors} ",
        f"shared_memory_per_block_optin: {chip.shared_memory}\n",
        f"registers_per_core_limit: {chip.registers} ",
        f"Compute Capability {chip.architecture[3:-2]}.{chip.architecture[-2:]}",
    ):
        assert field in text
    bandwidth = int(text.split("memory_bandwidth: ")[1].split()[0])
    assert math.isclose(bandwidth, chip.bandwidth, rel_tol=0.05)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_the_catalogue_has_every_pass_width_and_dtype_once(chip):
    cases = catalogue.cases(chip)
    assert {(c.direction, c.dim) for c in cases} >= {(p, d) for p in ("forward", "dq", "dkv") for d in (32, 64, 128)}
    assert {c.dtype for c in cases} == {"bfloat16", "float16"}
    assert {c.ragged for c in cases if c.direction == "forward"} == {False, True}
    assert {(c.direction, c.keys) for c in cases if c.short} == {("forward", None), ("dq", None), ("dkv", 256)}
    assert len({c.name for c in cases}) == len(cases)
    for case in cases:
        if case.operator in ("window_attention", "seed_attention"):
            assert case.activation == "softmax"
            assert (case.window is None) != (case.seeds is None)
            continue
        assert case.activation in KERNEL_ACTIVATIONS
        assert case.ragged or (case.keys is not None and case.keys % case.config.block == 0)
        assert case.config.run == 1 or (case.keys or math.inf) <= case.config.stages * case.config.block


def test_two_cases_of_one_name_are_refused(monkeypatch):
    monkeypatch.setattr(catalogue, "GENERATORS", (catalogue.gdpa, catalogue.gdpa))
    with pytest.raises(ValueError, match="more than one case"):
        catalogue.cases(H100)


# --- compiled in earnest ---


def first_of_each_chip(cases):
    """One of each chip in `make test`; the others are slow, and `make kernels-ci` compiles many more."""
    first = {chip.name: case for chip, case in reversed(cases)}
    return [
        (chip, case) if first[chip.name] is case else pytest.param(chip, case, marks=pytest.mark.slow)
        for chip, case in cases
    ]


@pytest.fixture(scope="module")
def folder():
    """Raises where there is no compiler, with what to type: a skip would look like a check that passed."""
    return check.compiler()


@pytest.mark.parametrize(("chip", "case"), first_of_each_chip(ONE_OF_EACH), ids=[case.name for _, case in ONE_OF_EACH])
def test_a_kernel_compiles_without_spills_and_fits(chip, case, folder):
    result = check.check(case, chip, folder)
    assert result.faults == ()
    (kernel,) = result.kernels
    assert kernel.architecture == chip.architecture
    assert kernel.threads == 128 * (case.config.units * case.warpgroups + 1)
    backward, outputs = case.direction != "forward", 1 + (case.direction == "dkv")
    if chip is H100:
        tiles = sm90.shared_memory(case.dim, 2, backward=backward, outputs=outputs, config=case.config)
    else:
        tiles = sm100.shared_memory(case.dim, 2, backward=backward, config=case.config)
        columns = sm100.tensor_memory(case.dim, backward=backward, outputs=outputs, config=case.config)
        assert kernel.tensor_memory_columns == allocated_columns(columns)
    assert tiles <= kernel.shared_memory <= tiles + 1024
    # An instruction multiplies a depth of 16: a step's products over the head's width, then those over the block.
    over_dim, over_block = {"forward": (1, 1), "dq": (2, 1), "dkv": (2, 2)}[case.direction]
    products = [loop.kinds["matrix"] for loop in kernel.loops if "matrix" in loop.kinds]
    assert set(products) == {(over_dim * case.dim + over_block * case.config.block) // 16}
    # One tanh a score, but for the share of polynomials; two weights are packed at once, in the backward two of each.
    loop = compute_loop(kernel.loops)
    assert loop is not None and result.scores is not None
    assert loop.kinds["mufu"] == result.scores * (8 - case.config.polynomial) / 8
    assert loop.kinds["convert"] == result.scores / 2 * outputs
    # Without a mask all of that is still done; around it the sums are rounded and written, two at once.
    assert {kind: loop.shortest[kind] for kind in ("mufu", "convert")} == {
        kind: loop.kinds[kind] for kind in ("mufu", "convert")
    }
    assert loop.around["convert"] == case.tile_rows * case.dim / 128 / 2 * outputs / case.warpgroups
    assert (result.prediction is not None) == (case.tiling is not None)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_a_kernel_that_spills_fails(chip, folder, monkeypatch):
    # The process that compiles it finds it by its module's name.
    here = str(Path(__file__).parent)
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("PYTHONPATH", here)
    case = dataclasses.replace(FORWARD, build=importlib.import_module("spilling").build)
    result = check.check(case, chip, folder)
    assert len(result.faults) == 1 and result.faults[0].startswith("spills: ")
    (kernel,) = result.kernels
    assert kernel.spill_stores > 0 and kernel.spill_loads > 0
    assert kernel.architecture == chip.architecture


def test_a_config_that_is_too_large_fails_and_says_so(folder, monkeypatch, capsys, tmp_path):
    case = dataclasses.replace(FORWARD, config=Sm90Config(block=256, stages=4))
    monkeypatch.setattr(catalogue, "GENERATORS", (lambda: iter([case]),))
    status = check.main(["--chip", "h100", "--jobs", "1", "--output", str(tmp_path)])
    printed = capsys.readouterr()
    assert status == 1
    assert f"FAILED h100 {case.name}" in printed.err
    assert "needs 294912 bytes of shared memory at head width 64; there are 231424" in printed.err
    written = json.loads((tmp_path / "h100.json").read_text())
    assert written["cases"][case.name]["kernels"] == []
    assert "shared memory" in written["cases"][case.name]["faults"][0]
    assert set(written["made_by"]) == {"command", "commit", "jax", "ptxas"}


def test_a_kernel_for_another_chip_fails_and_says_why(folder):
    result = check.check(FORWARD, B200, folder)
    assert result.kernels == ()
    assert "did not compile" in result.faults[0] and "not supported on sm_100a" in result.faults[0]


# --- the command ---


def fake(case, chip, folder, tanh=64):
    return check.Result(case.name, tuple(parse(report(sass=disassembly(tanh)))), (), 1.0, case.scores)


def test_a_run_over_all_writes_and_a_selection_does_not(folder, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(check, "check", fake)
    output = ["--output", str(tmp_path)]
    assert check.main(["--chip", "h100", "--select", "dkv", *output]) == 0
    some = sum("dkv" in name or "d128-float16" in name for name in CASES["h100"])
    assert check.main(["--chip", "h100", "--select", "dkv", "d128-float16", *output]) == 0
    assert f"h100: {some} cases, 0 failed" in capsys.readouterr().out and 0 < some < len(CASES["h100"])
    assert not (tmp_path / "h100.json").exists()
    assert check.main(["--chip", "h100", *output]) == 0
    first = (tmp_path / "h100.json").read_text()
    assert set(json.loads(first)["cases"]) == set(CASES["h100"])
    # The same kernels at another commit leave the file as it is.
    monkeypatch.setattr(check, "_commit", lambda: "another")
    assert check.main(["--chip", "h100", *output]) == 0
    assert (tmp_path / "h100.json").read_text() == first
    assert f"{len(CASES['h100'])} cases, 0 failed" in capsys.readouterr().out


def test_one_of_each_is_the_last_of_every_operator_and_pass_and_writes_nothing(folder, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(check, "check", fake)
    chosen = check.selected(H100, ["d128-bfloat16"], one_of_each=True)
    kinds = [(case.operator, case.direction) for case in chosen]
    assert len(kinds) == len(set(kinds)) and set(kinds) == {(c.operator, c.direction) for c in CASES["h100"].values()}
    last = {(c.operator, c.direction): c.name for c in CASES["h100"].values() if "d128-bfloat16" in c.name}
    assert sorted(case.name for case in chosen) == sorted(last.values())
    output = ["--output", str(tmp_path)]
    assert check.main(["--chip", "h100", "--one-of-each", "--select", "d128-bfloat16", *output]) == 0
    assert f"h100: {len(chosen)} cases, 0 failed" in capsys.readouterr().out
    assert check.main(["--chip", "h100", "--one-of-each", *output]) == 0
    assert not (tmp_path / "h100.json").exists()


def test_a_longer_loop_fails_until_it_is_accepted(folder, monkeypatch, capsys, tmp_path):
    command = ["--chip", "h100", "--output", str(tmp_path)]
    monkeypatch.setattr(check, "check", fake)
    assert check.main([*command, "--select", "dkv"]) == 0
    assert "no stored loop to compare with" in capsys.readouterr().out
    assert check.main(command) == 0
    path = tmp_path / "h100.json"
    stored = path.read_text()
    capsys.readouterr()
    monkeypatch.setattr(check, "check", functools.partial(fake, tanh=65))  # 66 of 65, within 3%
    assert check.main([*command, "--select", "dkv"]) == 0
    assert "no stored loop" not in capsys.readouterr().out
    monkeypatch.setattr(check, "check", functools.partial(fake, tanh=66))
    for selection in (["--select", "dkv"], []):
        assert check.main([*command, *selection]) == 1
        printed = capsys.readouterr()
        assert "the compute loop has 67 instructions, stored are 65" in printed.err
        assert "make kernels KERNELS=--accept-longer-loops" in printed.err
    assert "not written" in printed.out and path.read_text() == stored
    assert check.main([*command, "--accept-longer-loops"]) == 0
    assert path.read_text() != stored
    assert check.main([*command, "--select", "dkv"]) == 0


def test_rows_stored_before_instructions_were_counted_are_no_budget(folder, monkeypatch, capsys, tmp_path):
    command = ["--chip", "h100", "--output", str(tmp_path)]
    monkeypatch.setattr(check, "check", fake)
    assert check.main(command) == 0
    path = tmp_path / "h100.json"
    content = json.loads(path.read_text())
    for case in content["cases"].values():
        for kernel in case["kernels"]:
            del kernel["loops"]
    path.write_text(json.dumps(content))
    capsys.readouterr()
    monkeypatch.setattr(check, "check", functools.partial(fake, tanh=640))
    assert check.main([*command, "--select", "dkv"]) == 0
    assert "ok, no stored loop to compare with" in capsys.readouterr().out


def test_each_loop_is_printed_by_kind(folder, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(check, "check", fake)
    command = ["--chip", "h100", "--output", str(tmp_path), "--each-loop", "--select", FORWARD.name]
    assert check.main(command) == 0
    assert f"loop of 65: control 1 ({1 / FORWARD.scores:.2f}), mufu 64 (" in capsys.readouterr().out


def test_predictions_are_printed_and_stored(folder, monkeypatch, capsys, tmp_path):
    def predicted(case, chip, folder):
        result = fake(case, chip, folder)
        loops = result.kernels[0].loops
        return dataclasses.replace(result, prediction=case.predicted(loops, chip), peer=case.of_peer(loops, chip))

    monkeypatch.setattr(check, "check", predicted)
    assert check.main(["--chip", "h100", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    case = pick(H100, "dq", 128)
    found = predicted(case, H100, folder).prediction
    assert found is not None
    assert f"predicted, not measured: {found.overlapped * 1e3:.3f} ms by {found.limit} if all overlaps" in printed
    assert "h100: gdpa backward, bfloat16 gelu_tanh, 0/8 by polynomials: predicted, not measured, are " in printed
    written = json.loads((tmp_path / "h100.json").read_text())
    shape = {"batch": 1152, "max_length": 1024, "sparsity": 1.0, "keys": 256, "heads": 4, "dim": 128}
    assert written["predicted_for"]["gdpa"] == shape
    assert list(written["predicted_for"]) == [
        "gdpa",
        "window_attention",
        "seed_attention-seeds64",
        "seed_attention-seeds256",
    ]
    assert written["cases"][case.name]["predicted"] == found.row()
    rows = written["cases"].items()
    cases = CASES["h100"].items()
    assert {name for name, row in rows if "predicted" in row} == {name for name, case in cases if case.shape}
    assert {name for name, row in rows if "tokamax_tiles" in row} == {
        name for name, case in cases if case.operator == "window_attention" and case.shape
    }
    windows = [predicted(c, H100, folder) for _, c in cases if "window100" in c.name and "d128-bfloat16" in c.name]
    forward = next(result for result in windows if "forward" in result.case)
    assert forward.prediction is not None and forward.peer is not None
    ratio = forward.peer.overlapped / forward.prediction.overlapped
    lines = [line for line in printed.splitlines() if line.startswith("h100: window_attention")]
    assert len(lines) == 4  # forward and backward, of two dtypes
    assert (
        f"window_attention forward, bfloat16: predicted, not measured, {forward.prediction.overlapped * 1e3:.3f} ms"
        in lines[0]
    )
    assert f", {ratio:.2f} and " in lines[0] and "cuDNN, without the window, 0.851 or more" in lines[0]
    both = [sum(getattr(r, name).overlapped for r in windows if r is not forward) for name in ("prediction", "peer")]
    assert f" {both[1] * 1e3:.3f} and " in lines[1] and f", {both[1] / both[0]:.2f} and " in lines[1]


def test_a_selection_of_nothing_is_an_error(folder, capsys):
    assert check.main(["--select", "no such kernel"]) == 2
    assert "no case has 'no such kernel' in its name" in capsys.readouterr().err


def test_without_a_compiler_it_says_what_to_type(tmp_path, capsys):
    assert check.main(["--compiler", str(tmp_path)]) == 2
    assert "`make kernels` installs it" in capsys.readouterr().err


def test_a_compiler_without_nvdisasm_is_refused(folder, tmp_path):
    tools = tmp_path / "nvidia" / "cu13" / "bin"
    tools.mkdir(parents=True)
    for path in (*folder.glob("jax_cuda13_plugin-*.dist-info"), folder / "nvidia" / "cu13" / "bin" / "ptxas"):
        (tools if path.name == "ptxas" else tmp_path).joinpath(path.name).symlink_to(path)
    with pytest.raises(check.CompilerMissing, match="no CUDA compiler"):
        check.compiler(tmp_path)
    (tools / "nvdisasm").touch()
    assert check.compiler(tmp_path) == tmp_path.resolve()


def test_the_compiler_of_another_jax_is_refused(folder, monkeypatch):
    monkeypatch.setattr(check.jax, "__version__", "0.0.1")
    with pytest.raises(check.CompilerMissing, match=r"this is jax 0\.0\.1"):
        check.compiler(folder)


def test_a_case_is_named_by_what_differs():
    config = Sm90Config(block=64, stages=3, run=2, ping_pong=False)
    case = Case("gdpa", "dq", "sm90", 64, catalogue.build_pass, config, ragged=True, keys=128)
    assert case.name == "gdpa-sm90-dq-d64-bfloat16-gelu_tanh-block64-stages3-run2-ping_pong0-keys128-ragged"
