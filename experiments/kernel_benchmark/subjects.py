"""One implementation of one case, ready to be called and timed."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.kernel_benchmark import unfused
from experiments.kernel_benchmark.cases import Problem


class CannotRun(Exception):
    """Why an implementation does not run a case; the message is for the results."""


@dataclasses.dataclass
class Subject:
    """One implementation of one case, with its operands.

    Attributes:
      forward: () -> output, as a compiled call.
      backward: () -> gradients of q, k, v, likewise: the pullback alone, given what the forward pass saved.
      problem: the case.
      padded: the examples that it computes, as padded arrays; None where it computes all, packed.
      note: what must be known beside the number; "" if nothing.
      same: whether it computes the operator of the case, so that an error can be told.
    """

    forward: Callable[[], Any]
    backward: Callable[[], Any]
    problem: Problem
    padded: np.ndarray | None = None
    note: str = ""
    same: bool = True

    @property
    def lengths(self) -> np.ndarray:
        """Rows of each example that is computed, int32."""
        return self.problem.host_lengths if self.padded is None else self.problem.host_lengths[self.padded]

    def error_ratios(self, pass_: str, result: Any, truth: dict[str, Any]) -> list[float]:
        """Errors of a result in units of plain bf16's; `truth` is that of `unfused.truth`."""
        found = unfused.pick(self.problem, pass_, result, self.padded)
        return unfused.error_ratios(found, truth["float32"][pass_], truth["bfloat16"][pass_])


def compiled(function: Callable, operands: tuple, offsets: tuple, cotangent: jax.Array) -> tuple[Callable, Callable]:
    """Forward and backward of ``function(*operands, *offsets)`` as calls without arguments.

    Offsets are arguments of what is compiled, so a kernel's work list is made in each call, as in training. The
    backward call is the pullback alone: what it needs of the forward pass was saved by one before, which is not timed.
    """
    forward = jax.jit(function)
    save = jax.jit(lambda operands, offsets: jax.vjp(lambda *operands: function(*operands, *offsets), *operands)[1])
    pull = jax.jit(lambda pullback, cotangent: pullback(cotangent))
    saved: list = []

    def backward():
        if not saved:
            saved.append(save(operands, offsets))
        return pull(saved[0], cotangent)

    return lambda: forward(*operands, *offsets), backward


def reason(error: BaseException) -> str:
    """Type and first lines of an error, short enough for a table; what `CannotRun` says as it is."""
    if isinstance(error, CannotRun):
        return str(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def device_bytes() -> int:
    """Memory of the device, bytes; 2 GB where it does not say."""
    statistics = jax.devices()[0].memory_stats() or {}
    return int(statistics.get("bytes_limit", 2 * 10**9))


def on_packed(problem: Problem, function: Callable) -> Subject:
    """A subject that takes packed rows, ``(q, k, v, row_splits, lengths) -> out``."""
    return Subject(
        *compiled(function, problem.operands, (problem.row_splits, problem.lengths), problem.cotangent), problem
    )


def on_padded(problem: Problem, function: Callable, arrays_of_scores: int, multiple: int = 8) -> Subject:
    """A subject that takes padded arrays, made beforehand, of as many examples as fit.

    Args:
      problem: the case with its operands.
      function: ``(q, k, v, lengths) -> out`` on padded arrays.
      arrays_of_scores: arrays with an entry for each pair of padded rows that it holds at once.
      multiple: of which the padded length is one.
    """
    case = problem.case
    rows = -(-int(problem.host_lengths.max()) // multiple) * multiple
    batch, room = case.batch, 0.55 * device_bytes()
    while batch and arrays_of_scores * unfused.scores_bytes(case, batch, rows) > room:
        batch //= 2
    # The compared examples come first, so they are among those that fit.
    if batch < len(problem.subset):
        raise CannotRun(f"the scores of {len(problem.subset)} examples do not fit in {room / 1e9:.0f} GB")
    others = np.setdiff1d(np.arange(case.batch), problem.subset)
    examples = np.concatenate([problem.subset, others[: batch - len(problem.subset)]]).astype(np.int64)
    operands, cotangent, lengths = unfused.padded(problem, examples, rows)
    calls = compiled(function, operands, (lengths,), cotangent)

    note = "padded to the longest" if (problem.host_lengths != rows).any() else ""
    if batch < case.batch:
        note = "; ".join(filter(None, [note, f"{batch} of {case.batch} examples, the scores of more do not fit"]))
    return Subject(*calls, problem, examples, note)
