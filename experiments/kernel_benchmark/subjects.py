"""One implementation of one case, ready to be called and timed."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.kernel_benchmark import unfused
from experiments.kernel_benchmark.cases import Problem
from pallas_kernels.costs import Cost


class CannotRun(Exception):
    """Why an implementation does not run a case; the message is for the results."""


@dataclasses.dataclass
class Subject:
    """One implementation of one case, with its operands.

    Attributes:
      forward: () -> output, as a compiled call.
      backward: () -> gradients of q, k, v, likewise: the pullback alone, given what the forward pass saved.
      pick: (pass, result) -> results of the compared examples, see `unfused.pick`.
      cost: counted work, of fewer examples where `examples` are fewer.
      examples: examples computed.
      note: what must be known beside the number; "" if nothing.
      same: whether it computes the operator of the case, so that an error can be told.
    """

    forward: Callable[[], Any]
    backward: Callable[[], Any]
    pick: Callable[[str, Any], list[np.ndarray]]
    cost: Cost
    examples: int
    note: str = ""
    same: bool = True


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

    def pick(pass_, result):
        results, packed = ([result], problem.packed[3:]) if pass_ == "forward" else (result, problem.packed[:3])
        return unfused.pick_padded(problem, examples, results, packed)

    note = "padded to the longest" if (problem.host_lengths != rows).any() else ""
    if batch < case.batch:
        note = "; ".join(filter(None, [note, f"{batch} of {case.batch} examples, the scores of more do not fit"]))
    return Subject(*calls, pick, case.cost(problem.host_lengths[examples]), batch, note)
