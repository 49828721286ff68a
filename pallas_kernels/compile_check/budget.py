"""The stored counts of instructions as a budget: no kernel's loop with the score function may grow unnoticed.

The budget is the row of ``experiments/results/compile/CHIP.json``. A row from before instructions were counted, or of a
case that is new, has none until a run over the whole catalogue writes it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pallas_kernels.compile_check.report import Kernel
from pallas_kernels.compile_check.sass import Loop, compute_loop

ALLOWED = 1.03
"""How many times the stored instructions the loop may have (O): what ptxas orders otherwise passes, one instruction
more a score fails in a loop with up to thirty."""


def stored(path: Path) -> dict[str, tuple[int | None, ...]]:
    """Case -> instructions in the compute loop of each of its kernels, None where they are not stored.

    Args:
      path: what `check.write` wrote for a chip; nothing is stored if there is no such file.
    """
    if not path.exists():
        return {}
    cases: Mapping[str, dict] = json.loads(path.read_text())["cases"]
    return {name: tuple(map(_instructions, case["kernels"])) for name, case in cases.items()}


def _instructions(kernel: Mapping) -> int | None:
    loop = compute_loop([Loop(**loop) for loop in kernel.get("loops", ())])
    return loop.instructions if loop else None


def worse(kernels: Sequence[Kernel], before: Sequence[int | None]) -> list[str]:
    """What grew by more than is allowed, each with both numbers and what to do; empty if nothing did.

    Args:
      kernels: those of a case, now.
      before: `stored` of the case; None, or nothing, where there is no budget.
    """
    found = []
    for kernel, budget in zip(kernels, before, strict=False):
        loop = compute_loop(kernel.loops)
        if loop and budget and loop.instructions > ALLOWED * budget:
            found.append(
                f"the compute loop has {loop.instructions} instructions, stored are {budget}; if that is meant, commit "
                "and store it: make kernels KERNELS=--accept-longer-loops"
            )
    return found
