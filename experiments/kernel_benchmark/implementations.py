"""Whose operator is timed: ours by implementation, the unfused program, libraries, and kernels called from PyTorch.

Each comes as a `Subject` that is ready to be called, or raises `CannotRun` with the reason, which becomes a row of the
results like any other. Kernels of PyTorch and of Meta are measured by `torch_attention`.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from experiments.kernel_benchmark import clock, libraries, torch_attention, unfused
from experiments.kernel_benchmark.cases import Case, Problem
from experiments.kernel_benchmark.subjects import Subject, on_packed, on_padded
from experiments.kernel_benchmark.worker import CannotRun
from pallas_kernels.operators.gdpa import api as gdpa_api
from pallas_kernels.operators.gdpa import block, block_mosaic
from pallas_kernels.operators.seed_attention import api as seed_api
from pallas_kernels.operators.window_attention import api as window_api

APIS = {"gdpa": gdpa_api, "window_attention": window_api, "seed_attention": seed_api}
OURS = tuple(dict.fromkeys(one.name for api in APIS.values() for one in api.IMPLEMENTATIONS if one.name != "reference"))
"""Ours by the operators' own lists; one that an operator lacks has rows that say so."""
APART = "mosaic-norms-apart"
"""Ours for blocks alone: what "mosaic" fuses, as XLA's norms and residuals around the Mosaic kernel of gdpa."""
NAMES = (*OURS, APART, "unfused", *libraries.BUILD, *torch_attention.NAMES)
"""Everything measured by default. "reference" makes the scores of all pairs, so it is for toy shapes only."""


def options(case: Case) -> dict[str, Any]:
    """Arguments of a case's operator other than arrays."""
    if case.activation != "softmax":
        return {"activation": case.activation, "pre_scale": case.scale, "post_scale": 1.0}
    return {"scale": case.scale} | ({} if case.window is None else {"window": case.window})


def operator(case: Case, implementation: str) -> Callable:
    """(q, k, v, row_splits, lengths) -> output, by one of our implementations."""
    if implementation == APART:
        function, implementation = block.norms_apart, "mosaic"
    elif case.block:
        function = block.gdpa_block
    else:
        function = getattr(APIS[case.operator], case.operator)
    return functools.partial(function, **options(case), implementation=implementation)


def build(name: str, problem: Problem) -> Subject:
    """The subject of a name in `NAMES` that is called from JAX, or "reference".

    Raises:
      Exception: it does not run this case here, of whatever type; see `reason`.
    """
    if name == "unfused":
        # Forward: scores and weights; backward: saved ones, gradients of both.
        return on_padded(problem, functools.partial(unfused.attend, problem.case), 4)
    if name in libraries.BUILD:
        return libraries.BUILD[name](problem)
    if problem.case.block and name == "mosaic":
        why = block_mosaic.refusal(*problem.operands, *problem.offsets)
        if why is not None:  # the operator would leave the norms to XLA, which is another row
            raise CannotRun(why)
    function = operator(problem.case, name)
    jax.eval_shape(function, *problem.operands, *problem.offsets)
    return on_packed(problem, function)


def device() -> Iterator[dict[str, Any]]:
    """Job: the name that JAX gives the device at hand, and its platform."""
    yield {"kind": jax.devices()[0].device_kind, "platform": jax.default_backend()}


def peaks(small: bool) -> Iterator[dict[str, Any]]:
    """Job: a matrix product and a copy measured here, FLOP/s and bytes/s, with the seconds they come from."""
    size = 256 if small else 8192
    a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2))
    values = jax.random.normal(jax.random.key(2), (2**20 if small else 2**30,), jnp.bfloat16)
    product = jax.jit(lambda a, b: jnp.matmul(a, b))
    negate = jax.jit(lambda x: -x)
    times = clock.take_turns({"matmul": lambda: product(a, b), "copy": lambda: negate(values)}, rounds=5)
    matmul, copy = (times[name].median for name in ("matmul", "copy"))
    yield {
        "matmul": f"bf16 {size} x {size} x {size}",
        "matmul_seconds": matmul,
        "matmul_flops_per_second": 2 * size**3 / matmul,
        "copy_bytes_per_second": 2 * values.nbytes / copy,
    }
