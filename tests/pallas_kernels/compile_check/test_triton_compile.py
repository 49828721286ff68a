"""The compile check of Triton kernels: what it reads, and a selection of the catalogue compiled in earnest."""

import dataclasses
import functools
import json

import pytest

from pallas_kernels.compile_check import check
from pallas_kernels.compile_check import triton_catalogue as catalogue
from pallas_kernels.compile_check.sass import Loop, compute_loop
from pallas_kernels.compile_check.triton_report import parse
from pallas_kernels.triton import blocks, target

SM80, SM89, SM90 = catalogue.CHIPS.values()


def pick(chip, *what):
    """The first such case of the catalogue."""
    return next(c for c in catalogue.cases(chip) if (c.operator, c.direction, c.dim) == what)


SELECTION = [
    (SM80, pick(SM80, "gdpa", "forward", 128)),
    (SM80, pick(SM80, "seed_attention", "dq", 16)),
    (SM89, pick(SM89, "window_attention", "dkv", 128)),
    (SM90, pick(SM90, "window_attention", "forward", 64)),
]


def report(spilled=0, architecture="sm_80", shared=65536, note="", special=32):
    body = "        /*0010*/                   MUFU.EX2 R44, R6 ;\n" * special
    return f"""
ptxas info    : 0 bytes gmem
{note}ptxas info    : Compiling entry function 'forward' for '{architecture}'
ptxas info    : Function properties for forward
    {spilled} bytes stack frame, {spilled} bytes spill stores, {spilled} bytes spill loads
ptxas info    : Used 214 registers, used 1 barriers, 408 bytes cmem[0]
\t.section\t.text.forward,"ax",@progbits
.L_x_0:
{body}        /*0800*/               @P0 BRA `(.L_x_0) ;
        /*0810*/                   EXIT ;
Launch: 256 threads, {shared} bytes of dynamic shared memory
"""


def test_a_report_is_read_and_its_faults_are_named():
    (kernel,) = parse(report())
    assert (kernel.architecture, kernel.registers, kernel.threads, kernel.shared_memory) == ("sm_80", 214, 256, 65536)
    assert kernel.faults(SM80) == []
    kinds = {"control": 1, "mufu": 32}
    assert kernel.loops == (Loop(33, kinds, kinds),)
    spilling, other = parse(report(spilled=8, shared=100 * 1024) + report(architecture="sm_90a"))
    assert spilling.faults(SM80) == ["spills: 8 bytes of stores, 8 of loads"]
    assert other.faults(SM80) == ["compiled for sm_90a, not sm_80"]
    assert "102400 bytes of shared memory, of 101376" in spilling.faults(SM89)
    warning = "wgmma.mma_async instructions are serialized due to something"
    assert parse(report(note=f"{warning}\n"))[0].serialized == warning


def test_an_output_without_a_whole_report_is_refused():
    with pytest.raises(ValueError, match="no kernel"):
        parse("ptxas info    : 0 bytes gmem")
    with pytest.raises(ValueError, match="without a launch"):
        parse(report() + report().partition("Launch")[0])
    with pytest.raises(ValueError, match="cannot read"):
        parse(report().replace("Used 214 registers", "no registers"))


@pytest.mark.parametrize("chip", catalogue.CHIPS.values(), ids=catalogue.CHIPS)
def test_the_catalogue_has_every_operator_and_pass(chip):
    cases = catalogue.cases(chip)
    widths = target.DIMS if chip is SM80 else (64, 128)
    for operator in ("gdpa", "window_attention", "seed_attention"):
        assert {(c.direction, c.dim) for c in cases if c.operator == operator} == {
            (name, dim) for name in blocks.PASSES for dim in widths
        }
    assert len({c.name for c in cases}) == len(cases)


def first_of_many(cases):
    """The first in `make test`; the others are slow, and `make kernels-ci` compiles many more."""
    return [cases[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in cases[1:])]


@pytest.fixture(scope="module")
def folder():
    """Raises where there is no compiler, with what to type: a skip would look like a check that passed."""
    missing = target.missing()
    assert missing is None, missing
    return check.compiler()


@pytest.mark.parametrize(("chip", "case"), first_of_many(SELECTION), ids=[case.name for _, case in SELECTION])
def test_a_kernel_compiles_without_spills_and_fits(chip, case, folder):
    result = check.check(case, chip, folder)
    assert result.faults == ()
    (kernel,) = result.kernels
    assert kernel.architecture == chip.architecture
    sizes = blocks.block(case.direction, case.dim)
    assert kernel.threads == 32 * sizes.warps
    loop = compute_loop(kernel.loops)
    assert loop is not None and result.scores is not None
    assert result.scores == sizes.rows * sizes.tile / kernel.threads
    if case.direction == "forward" and chip.capability < 90:
        # Both products in instructions of 16 x 8 x 16, and one exponential a score.
        assert loop.kinds["matrix"] == 2 * sizes.rows * sizes.tile * case.dim / (16 * 8 * 16) / sizes.warps
        assert loop.kinds["mufu"] == result.scores
    else:
        assert loop.kinds["matrix"] > 0 and loop.kinds["mufu"] >= result.scores


def test_a_longer_loop_fails(folder, monkeypatch, capsys, tmp_path):
    def fake(case, chip, folder, special=32):
        return check.Result(case.name, tuple(parse(report(special=special))), (), 1.0, case.scores)

    command = ["--chip", SM80.name, "--output", str(tmp_path)]
    monkeypatch.setattr(check, "check", fake)
    assert check.main(command) == 0
    assert "predicted" not in (tmp_path / f"{SM80.name}.json").read_text() + capsys.readouterr().out
    monkeypatch.setattr(check, "check", functools.partial(fake, special=34))
    assert check.main(command) == 1
    assert "the compute loop has 35 instructions, stored are 33" in capsys.readouterr().err


def test_a_kernel_that_spills_or_does_not_fit_fails(folder, monkeypatch, capsys, tmp_path):
    case = dataclasses.replace(pick(SM89, "gdpa", "dkv", 128), sizes=blocks.Block(128, 64, 4, 3))
    monkeypatch.setattr(catalogue, "cases", lambda chip: (case,))
    assert check.main(["--chip", SM89.name, "--jobs", "1", "--output", str(tmp_path)]) == 1
    assert f"FAILED {SM89.name} {case.name}" in capsys.readouterr().err
    written = json.loads((tmp_path / f"{SM89.name}.json").read_text())
    faults = " ".join(written["cases"][case.name]["faults"])
    assert "spills: " in faults and "bytes of shared memory, of 101376" in faults
    assert set(written["made_by"]) == {"command", "commit", "jax", "ptxas", "triton", "jax-triton"}


def test_without_jax_triton_it_says_what_to_type(folder, monkeypatch, capsys):
    monkeypatch.setattr(target, "missing", lambda: "jax_triton is not installed")
    assert check.main(["--chip", SM80.name]) == 2
    assert "jax_triton is not installed" in capsys.readouterr().err
