"""Whose operator is timed: ours by implementation, the unfused program, libraries, and processes of their own.

Each comes as a `Subject` that is ready to be called, or raises `CannotRun` with the reason, which becomes a row of the
results like any other. What runs in a process of its own is measured by `processes`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.kernel_benchmark import libraries, processes, unfused
from experiments.kernel_benchmark.cases import Case, Problem
from experiments.kernel_benchmark.subjects import CannotRun, Subject, compiled, on_padded, reason
from pallas_kernels.operators.gdpa import api as gdpa_api
from pallas_kernels.operators.seed_attention import api as seed_api
from pallas_kernels.operators.window_attention import api as window_api

APIS = {"gdpa": gdpa_api, "window_attention": window_api, "seed_attention": seed_api}
OURS = tuple(dict.fromkeys(one.name for api in APIS.values() for one in api.IMPLEMENTATIONS if one.name != "reference"))
"""Ours by the operators' own lists; one that an operator lacks has rows that say so."""
NAMES = (*OURS, "unfused", *libraries.NAMES, *processes.NAMES)
"""Everything measured by default. "reference" makes the scores of all pairs, so it is for toy shapes alone."""


def operator(case: Case, implementation: str) -> Callable:
    """(q, k, v, row_splits, lengths) -> output, by one of our implementations."""
    if case.operator == "seed_attention":
        return functools.partial(seed_api.seed_attention, scale=case.scale, implementation=implementation)
    if case.window is not None:
        return functools.partial(
            window_api.window_attention, window=case.window, scale=case.scale, implementation=implementation
        )
    return functools.partial(
        gdpa_api.gdpa, activation=case.activation, pre_scale=case.scale, implementation=implementation
    )


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


def plain(problem: Problem) -> Subject:
    """Two batched matrix products with the activation between them."""
    case = problem.case
    # Forward: scores and weights; backward: saved ones, gradients of both.
    return on_padded(problem, lambda q, k, v, lengths: unfused.attend(case, q, k, v, lengths), 4)


def build(name: str, problem: Problem) -> Subject:
    """The subject of a name in `NAMES` that needs no process of its own, or "reference".

    Raises:
      CannotRun: it does not run this case here.
    """
    if name == "unfused":
        return plain(problem)
    if name in libraries.NAMES:
        return libraries.build(name, problem)
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
