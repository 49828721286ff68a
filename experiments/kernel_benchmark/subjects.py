"""One implementation of one case, ready to be called and timed."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.kernel_benchmark import unfused
from experiments.kernel_benchmark.cases import Problem
from experiments.kernel_benchmark.worker import CannotRun


@dataclasses.dataclass
class Subject:
    """One implementation of one case, with its operands.

    Attributes:
      function: ``(*operands, *offsets) -> output``.
      operands: q, k, v.
      offsets: arguments of what is compiled, so a kernel's work list is made in each call, as in training.
      cotangent: of the output.
      problem: the case.
      padded: the examples that it computes, as padded arrays; None where it computes all, packed.
      note: what must be known about the number; "" if nothing.
      same: whether it computes the operator of the case, so that an error can be told.
    """

    function: Callable
    operands: tuple[jax.Array, ...]
    offsets: tuple[jax.Array, ...]
    cotangent: jax.Array
    problem: Problem
    padded: np.ndarray | None = None
    note: str = ""
    same: bool = True

    def call(self, pass_: str) -> functools.partial:
        """A pass as a jitted function with its arguments, which gives the output, or gradients of q, k, v.

        Backward is only the pullback: what it needs of the forward pass is saved here.
        """
        if pass_ == "forward":
            return functools.partial(jax.jit(self.function), *self.operands, *self.offsets)

        def save(operands, offsets):
            return jax.vjp(lambda *operands: self.function(*operands, *offsets), *operands)[1]

        pull = jax.jit(lambda pullback, cotangent: pullback(cotangent))
        return functools.partial(pull, jax.jit(save)(self.operands, self.offsets), self.cotangent)

    @property
    def lengths(self) -> np.ndarray:
        """Rows of each example that is computed, int32."""
        lengths = self.problem.case.lengths()
        return lengths if self.padded is None else lengths[self.padded]

    def error_ratios(self, pass_: str, result: Any, truth: dict[str, Any]) -> list[float]:
        """Errors of a result in units of plain bf16's; `truth` is that of `unfused.truth`."""
        found = unfused.pick(self.problem, pass_, result, self.padded)
        return unfused.error_ratios(found, truth["float32"][pass_], truth["bfloat16"][pass_])


def device_bytes() -> int:
    """Memory of the device, bytes; 2 GB where it does not say."""
    statistics = jax.devices()[0].memory_stats() or {}
    return int(statistics.get("bytes_limit", 2 * 10**9))


def on_packed(problem: Problem, function: Callable) -> Subject:
    """A subject that takes packed rows, ``(q, k, v, row_splits, lengths) -> out``."""
    return Subject(function, problem.operands, problem.offsets, problem.cotangent, problem)


def on_padded(
    problem: Problem, function: Callable, arrays_of_scores: int, *, multiple: int = 8, note: str = "", same: bool = True
) -> Subject:
    """A subject that takes padded arrays, made beforehand, of as many examples as fit.

    Args:
      problem: the case with its operands.
      function: ``(q, k, v, lengths) -> out`` on padded arrays.
      arrays_of_scores: arrays with an entry for each pair of padded rows that it holds at once.
      multiple: of which the padded length is one.
      note: what must be known of the function; what padding does is added.
      same: whether it computes the operator of the case.
    """
    case = problem.case
    every, compared = case.lengths(), case.compared()
    rows = -(-int(every.max()) // multiple) * multiple
    batch, room = case.batch, 0.55 * device_bytes()
    while batch and arrays_of_scores * unfused.scores_bytes(case, batch, rows) > room:
        batch //= 2
    # The compared examples come first, so they are among those that fit.
    if batch < len(compared):
        raise CannotRun(f"the scores of {len(compared)} examples do not fit in {room / 1e9:.0f} GB")
    others = np.setdiff1d(np.arange(case.batch), compared)
    examples = np.concatenate([compared, others[: batch - len(compared)]]).astype(np.int64)
    operands, cotangent, lengths = unfused.padded(problem, examples, rows)
    notes = [note, "padded to the longest" if (every != rows).any() else ""]
    if batch < case.batch:
        notes.append(f"{batch} of {case.batch} examples, the scores of more do not fit")
    note = "; ".join(filter(None, notes))
    return Subject(function, operands, (lengths,), cotangent, problem, examples, note, same)
