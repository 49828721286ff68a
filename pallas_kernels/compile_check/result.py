"""What became of one case of the compile check, and its lines in the printed table."""

import dataclasses
from collections.abc import Sequence

from pallas_kernels.compile_check.report import Kernel
from pallas_kernels.compile_check.sass import compute_loop


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one case.

    Attributes:
      case: its name.
      kernels: what was compiled, empty if nothing could be.
      faults: what is wrong, empty if nothing is.
      seconds: how long its process took.
      scores: see `catalogue.Case.scores`; of the last kernel, since passes before it have block sizes of their own.
        None for a Triton kernel.
      longer: `budget.worse` of it.
      budgeted: whether its instructions are stored, so that they can be compared.
    """

    case: str
    kernels: tuple[Kernel, ...]
    faults: tuple[str, ...]
    seconds: float
    scores: float | None = None
    longer: tuple[str, ...] = ()
    budgeted: bool = False


HEADINGS = ("registers", "threads", "spill st/ld", "stack", "shared", "tmem", "loop", "a score", "s")


def _row(name: str, width: int, values: Sequence[object]) -> str:
    columns = (f"{value!s:>{max(len(heading), 3)}}" for value, heading in zip(values, HEADINGS, strict=True))
    return " ".join([f"{name:{width}}", *columns])


def heading(width: int) -> str:
    """The first line of the table, for names of `width` characters."""
    return _row("case", width, HEADINGS)


def rows(result: Result, width: int) -> list[str]:
    """The lines of the table for one result, the case's name padded to `width` characters."""
    faults = (*result.faults, *result.longer)
    verdict = "FAILED: " + "; ".join(faults) if faults else "ok"
    if not faults and result.scores and not result.budgeted:
        verdict += ", no stored loop to compare with"
    seconds = f"{result.seconds:.0f}"
    measured: list[tuple[object, ...]] = []
    for k in result.kernels:
        loop, spills = compute_loop(k.loops), f"{k.spill_stores}/{k.spill_loads}"
        scores = result.scores if k is result.kernels[-1] else None
        counts = (loop.instructions if loop else "-", _a_score(loop.instructions, scores) if loop else "-")
        measured.append((k.registers, k.threads, spills, k.stack, k.shared_memory, k.tensor_memory_columns, *counts))
    return [
        f"{_row(result.case, width, (*values, seconds))}  {verdict}"
        for values in measured or [("-",) * (len(HEADINGS) - 1)]
    ]


def _a_score(instructions: int, scores: float | None) -> str:
    return f"{instructions / scores:.2f}" if scores else "-"


def loop_lines(result: Result) -> list[str]:
    """A line for each inner loop: instructions of a trip and, for each score of a thread, those of each kind."""
    return [
        f"  loop of {loop.instructions}: "
        + ", ".join(
            f"{kind} {count} ({_a_score(count, result.scores if kernel is result.kernels[-1] else None)})"
            for kind, count in loop.kinds.items()
        )
        for kernel in result.kernels
        for loop in kernel.loops
    ]
