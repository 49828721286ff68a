"""What became of one case of the compile check, and its lines in the printed table."""

import dataclasses
from collections.abc import Sequence

from pallas_kernels.chips import Chip
from pallas_kernels.compile_check import peers
from pallas_kernels.compile_check.catalogue import Case
from pallas_kernels.compile_check.predict import Prediction, backward
from pallas_kernels.compile_check.report import Kernel
from pallas_kernels.compile_check.sass import compute_loop
from pallas_kernels.compile_check.triton_catalogue import Case as TritonCase


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one case.

    Attributes:
      case: its name.
      kernels: what was compiled, empty if nothing could be.
      faults: what is wrong, empty if nothing is.
      seconds: how long its process took.
      scores: see `catalogue.Case.scores`; of the last kernel, since passes before it have block sizes of their own.
      longer: `budget.worse` of it.
      budgeted: whether its instructions are stored, so that they can be compared.
      prediction: of the time that it takes; None where there is none.
      peer: the same with the tiles of tokamax (`peers`); None where there is none.
    """

    case: str
    kernels: tuple[Kernel, ...]
    faults: tuple[str, ...]
    seconds: float
    scores: float | None = None
    longer: tuple[str, ...] = ()
    budgeted: bool = False
    prediction: Prediction | None = None
    peer: Prediction | None = None


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


def prediction_line(prediction: Prediction, chip: Chip) -> str:
    """What `predict` says of a case: milliseconds of each pipe, of all, and the share of the peak that it executes."""
    pipes = ", ".join(f"{name} {seconds * 1e3:.3f}" for name, seconds in prediction.pipes.items())
    shares = [prediction.share(seconds, chip) for seconds in (prediction.overlapped, prediction.apart)]
    return (
        f"  predicted, not measured: {prediction.overlapped * 1e3:.3f} ms by {prediction.limit} if all overlaps "
        f"({shares[0]:.0%} of the peak executed), {prediction.apart * 1e3:.3f} ms if products and threads take turns "
        f"({shares[1]:.0%}); {pipes}"
    )


def backward_lines(cases: Sequence[Case | TritonCase], results: Sequence[Result], chip: Chip) -> list[str]:
    """A line for each backward pass of gdpa of which both kernels are predicted.

    Args:
      cases: what was compiled.
      results: of each.
      chip: for which.
    """
    passes: dict[str, dict[str, Prediction]] = {}
    for case, result in zip(cases, results, strict=True):
        if isinstance(case, Case) and case.operator == "gdpa" and result.prediction:
            name = f"{case.dtype} {case.activation}, {case.config.polynomial}/8 by polynomials"
            passes.setdefault(name, {})[case.direction] = result.prediction
    lines = []
    for name, found in passes.items():
        if "dq" in found and "dkv" in found:
            best, worst = backward(found["dq"], found["dkv"], chip)
            lines.append(
                f"{chip.name}: gdpa backward, {name}: predicted, not measured, are {worst:.0%} to {best:.0%} of the "
                "peak, of the 10 FLOPs that count"
            )
    return lines


def window_lines(cases: Sequence[Case | TritonCase], results: Sequence[Result], chip: Chip) -> list[str]:
    """A line for each pass of window attention that is predicted, beside what others would take (`peers`).

    Args:
      cases: what was compiled.
      results: of each.
      chip: for which.
    """
    found: dict[str, dict[str, Result]] = {}
    for case, result in zip(cases, results, strict=True):
        if isinstance(case, Case) and case.operator == "window_attention" and result.prediction:
            found.setdefault(case.dtype, {})[case.direction] = result
    least, lines = peers.cudnn(chip), []
    for dtype, passes in found.items():
        for name, kernels in peers.PASSES.items():
            if not passes.keys() >= set(kernels):
                continue
            ours = _times([passes[kernel].prediction for kernel in kernels])
            line = (
                f"{chip.name}: window_attention {name}, {dtype}: predicted, not measured, {ours[0] * 1e3:.3f} ms if "
                f"all overlaps, {ours[1] * 1e3:.3f} in turn; cuDNN, without the window, {least[name] * 1e3:.3f} or more"
            )
            if all(passes[kernel].peer for kernel in kernels):
                theirs = _times([passes[kernel].peer for kernel in kernels])
                ratios = [x / y for x, y in zip(theirs, ours, strict=True)]
                line += (
                    f"; the tiles of tokamax with the same instructions {theirs[0] * 1e3:.3f} and "
                    f"{theirs[1] * 1e3:.3f}, {ratios[0]:.2f} and {ratios[1]:.2f} times as long"
                )
            lines.append(line)
    return lines


def _times(predictions: Sequence[Prediction | None]) -> tuple[float, float]:
    """Seconds of kernels one after the other: if all overlaps, and apart."""
    known = [prediction for prediction in predictions if prediction]
    return sum(prediction.overlapped for prediction in known), sum(prediction.apart for prediction in known)
