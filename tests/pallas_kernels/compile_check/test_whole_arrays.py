"""What XLA does with whole arrays around the kernels: nothing, for a copy takes as long as a good part of a kernel."""

import math
import re
import sys

import pytest

from pallas_kernels.compile_check import check
from pallas_kernels.compile_check.catalogue import CHIPS
from tests.pallas_kernels.compile_check.whole_operators import DIM, HEADS, OPERATORS, ROWS
from tests.processes import run

NORMS = 3
"""What the backward pass of gdpa_block writes with XLA: q after its norm, the gradient of z, and that of q."""


# One of each chip in `make test`: what XLA does differs between operators, hardly between chips.
IN_MAKE_TEST = (("h100", "gdpa"), ("b200", "window_attention"))
CASES = [
    (chip, name) if (chip, name) in IN_MAKE_TEST else pytest.param(chip, name, marks=pytest.mark.slow)
    for chip in CHIPS
    for name in OPERATORS
]


def whole_results(hlo: str) -> list[tuple[str, str]]:
    """Opcode and line of each instruction that writes an array of the size of the jagged rows, or a larger one."""
    found = []
    for line in hlo[hlo.index("\nENTRY") :].splitlines():
        match = re.match(r"  (?:ROOT )?%\S+ = (\(.*?\)|\S+) ([\w-]+)\(", line)
        if match is None or match[2] in ("parameter", "bitcast", "get-tuple-element", "tuple"):
            continue
        shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
        if any(math.prod(map(int, shape.split(","))) >= ROWS * HEADS * DIM for shape in shapes if shape):
            found.append((match[2], line))
    return found


@pytest.mark.parametrize(("chip", "name"), CASES)
def test_only_kernels_write_whole_arrays(chip, name):
    command = [sys.executable, "-m", "tests.pallas_kernels.compile_check.whole_operators", chip, name]
    done = run(command, env=check.environment(check.compiler()), cwd=check.REPOSITORY)
    assert done.returncode == 0, done.stderr
    results = whole_results(done.stdout)
    kernels = [line for opcode, line in results if opcode == "custom-call" and '"mosaic_gpu_v2"' in line]
    others = [line for opcode, line in results if line not in kernels]
    # dk and dv are one result of a kernel; keys that are dense are fewer than rows, and seeds fewer than keys.
    assert len(kernels) == {"gdpa": 2, "gdpa_block": 2, "seed_attention": 1}.get(name, 3)
    assert len(others) == (NORMS if name == "gdpa_block" else 0), others


def test_a_copy_would_be_seen():
    hlo = f"""HloModule jit_run
%inner (p: bf16[{ROWS},{HEADS},{DIM}]) -> bf16[{ROWS},{HEADS},{DIM}] {{
  %p = bf16[{ROWS},{HEADS},{DIM}]{{2,1,0}} parameter(0)
}}

ENTRY %main (q: bf16[{ROWS},{HEADS},{DIM}]) -> bf16[{ROWS},{HEADS},{DIM}] {{
  %q = bf16[{ROWS},{HEADS},{DIM}]{{2,1,0}} parameter(0)
  %small = s32[{ROWS}]{{0}} fusion(%q), kind=kLoop, calls=%count
  %pair = (bf16[8]{{0}}, bf16[{HEADS},{ROWS},{DIM}]{{2,1,0}}) fusion(%q), kind=kLoop, calls=%inner
  ROOT %copy.1 = bf16[{ROWS * HEADS},{DIM}]{{1,0}} copy(%q)
}}
"""
    assert [opcode for opcode, _ in whole_results(hlo)] == ["fusion", "copy"]
