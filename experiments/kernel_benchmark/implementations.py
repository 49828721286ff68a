"""Whose operator is timed: ours by implementation, the unfused program, tokamax.

Each comes as a `Subject` that is ready to be called, or raises `CannotRun` with the reason, which becomes a row of the
results like any other.
"""

import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kernel_benchmark import unfused
from experiments.kernel_benchmark.cases import Case, Problem
from pallas_kernels.costs import Cost
from pallas_kernels.gdpa.api import gdpa
from pallas_kernels.seed_attention.api import seed_attention
from pallas_kernels.window_attention.api import window_attention


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


def operator(case: Case, implementation: str) -> Callable:
    """(q, k, v, row_splits, lengths) -> output, by one of our implementations."""
    if case.operator == "seed_attention":
        return functools.partial(seed_attention, scale=case.scale, implementation=implementation)
    if case.window is not None:
        return functools.partial(window_attention, window=case.window, scale=case.scale, implementation=implementation)
    return functools.partial(gdpa, activation=case.activation, pre_scale=case.scale, implementation=implementation)


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


def ours(problem: Problem, implementation: str) -> Subject:
    """One of our implementations behind `pallas_kernels.<operator>.api`."""
    offsets = (problem.row_splits, problem.lengths)
    function = operator(problem.case, implementation)
    try:
        jax.eval_shape(function, *problem.operands, *offsets)
    except Exception as error:  # whatever it is, it is the reason of this row and no reason to lose the others
        raise CannotRun(reason(error)) from error
    calls = compiled(function, problem.operands, offsets, problem.cotangent)

    def pick(pass_, result):
        if pass_ == "forward":
            return unfused.pick(problem, [result], problem.packed[3:])
        return unfused.pick(problem, result, problem.packed[:3])

    return Subject(*calls, pick, problem.cost, problem.case.batch)


def reason(error: BaseException) -> str:
    """Type and first lines of an error, short enough for a table."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def device_bytes() -> int:
    """Memory of the device, bytes; 2 GB where it does not say."""
    statistics = jax.devices()[0].memory_stats() or {}
    return int(statistics.get("bytes_limit", 2 * 10**9))


def on_padded(problem: Problem, function: Callable, arrays_of_scores: int) -> Subject:
    """A subject that takes padded arrays, made beforehand, of as many examples as fit."""
    case = problem.case
    rows = -(-int(problem.host_lengths.max()) // 8) * 8
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


def plain(problem: Problem) -> Subject:
    """Two batched matrix products with the activation between them."""
    case = problem.case
    # Forward: scores and weights; backward: saved ones, gradients of both.
    return on_padded(problem, lambda q, k, v, lengths: unfused.attend(case, q, k, v, lengths), 4)


def tokamax(problem: Problem) -> Subject:
    """Softmax attention of tokamax at the same shape: another function, for a feeling of what the chip gives."""
    if importlib.util.find_spec("tokamax") is None:
        raise CannotRun("tokamax is not installed")
    if problem.case.operator != "gdpa":
        raise CannotRun("tokamax is measured at the shapes of gdpa alone")
    library, case = importlib.import_module("tokamax"), problem.case

    def attention(q, k, v, lengths):
        own = None if case.keys else lengths
        return library.dot_product_attention(q, k, v, scale=case.scale, key_value_seq_lengths=own)

    subject = on_padded(problem, attention, 0)
    note = f"softmax, another function; tokamax {getattr(library, '__version__', '?')}"
    return dataclasses.replace(subject, note="; ".join(filter(None, [note, subject.note])), same=False)


def build(name: str, problem: Problem) -> Subject:
    """The subject called "mosaic", "xla", "reference", "unfused" or "tokamax".

    Raises:
      CannotRun: it does not run this case here.
    """
    if name == "unfused":
        return plain(problem)
    if name == "tokamax":
        return tokamax(problem)
    return ours(problem, name)


def peaks(small: bool) -> dict[str, Any]:
    """A matrix product and a copy measured on this device: FLOP/s and bytes/s, with the seconds they come from."""
    from experiments.kernel_benchmark.clock import take_turns

    size = 256 if small else 8192
    a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2))
    values = jax.random.normal(jax.random.key(2), (2**20 if small else 2**30,), jnp.bfloat16)
    product = jax.jit(lambda a, b: jnp.matmul(a, b))
    negate = jax.jit(lambda x: -x)
    times = take_turns({"matmul": lambda: product(a, b), "copy": lambda: negate(values)}, rounds=5)
    matmul, copy = (times[name].median for name in ("matmul", "copy"))
    return {
        "matmul": f"bf16 {size} x {size} x {size}",
        "matmul_seconds": matmul,
        "matmul_flops_per_second": 2 * size**3 / matmul,
        "copy_bytes_per_second": 2 * values.nbytes / copy,
    }
