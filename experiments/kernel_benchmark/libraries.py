"""Attention of other JAX libraries to compare with: cuDNN through `jax.nn`, and tokamax's Mosaic kernel.

Both take padded arrays, made beforehand and not timed. What they compute is softmax attention, so at the shapes of gdpa
tokamax is a feeling for what the chip gives and no comparison. Neither was run on a GPU by us yet: at toy sizes on a
CPU the same calls run through `jax.nn`'s XLA program.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.kernel_benchmark.cases import Case, Problem
from experiments.kernel_benchmark.subjects import Subject, on_padded
from experiments.kernel_benchmark.worker import CannotRun

TOKAMAX_ROWS = 128
"""tokamax's Mosaic kernel takes only whole tiles of keys, so its padded length is a multiple of this."""


def _each(q: jax.Array, k: jax.Array) -> jax.Array:
    """Seeds that the batch shares, once for each example; other queries as they are."""
    return q if q.ndim == 4 else jnp.broadcast_to(q[None], (k.shape[0], *q.shape))


def by_jax(case: Case, implementation: str, *, full: bool = False) -> tuple[Callable[..., jax.Array], str, bool]:
    """A call of `jax.nn.dot_product_attention` for padded arrays, with no more than cuDNN can do.

    `jax.nn` hands cuDNN only a window on the left, with a causal mask: cuDNN leaves the last row on the left out,
    for which `jax.nn` adds one, so both bounds are inclusive as ours are. A window that also reaches to the right
    raises there; full attention is called in its place, which is less work than any mask over it.

    Args:
      case: softmax attention in a window, or of seeds.
      implementation: "cudnn", or "xla" to check the call without a GPU.
      full: whether all examples have the padded length.

    Returns:
      ``(q, k, v, lengths) -> out``, a note, and whether it computes the operator of the case.
    """
    options: dict[str, Any] = {"scale": case.scale, "implementation": implementation}
    note, same = "", True
    if case.window is not None:
        left, right = (side if side < case.max_length - 1 else None for side in case.window)
        if right == 0:
            options["is_causal"] = True
            if left is not None:
                options["local_window_size"] = (left, 0)
        elif (left, right) != (None, None):
            note, same = "does not skip: full attention, the window left out", False

    def call(q, k, v, lengths):
        known = {} if full else {"key_value_seq_lengths": lengths}
        if case.seeds is None and not full:
            known["query_seq_lengths"] = lengths
        return jax.nn.dot_product_attention(_each(q, k), k, v, **options, **known)

    return call, note, same


def cudnn(problem: Problem) -> Subject:
    """Fused attention of cuDNN on padded operands, with lengths where they differ."""
    if problem.case.activation != "softmax":
        raise CannotRun("cudnn is softmax attention, which gdpa is not")
    if jax.default_backend() != "gpu":
        raise CannotRun("cuDNN needs an NVIDIA GPU")
    full = bool((problem.case.lengths() == -(-problem.case.max_length // 8) * 8).all())
    call, note, same = by_jax(problem.case, "cudnn", full=full)
    return on_padded(problem, call, 0, note=note, same=same)


def tokamax(problem: Problem) -> Subject:
    """Mosaic attention of tokamax, its window a range of keys for each query, by which it skips tiles.

    At the shapes of gdpa it is softmax attention over the same keys, another function. The backward pass is the one
    that its version has for the Mosaic kernel, which in some is plain XLA.
    """
    case = problem.case
    if case.block:
        raise CannotRun("tokamax has no norms around its attention")
    if importlib.util.find_spec("tokamax") is None:
        raise CannotRun("tokamax is not installed")
    library = importlib.import_module("tokamax")
    options: dict[str, Any] = {"scale": case.scale, "implementation": "mosaic"}
    if case.window is not None:
        options["local_window_size"] = case.window

    def attention(q, k, v, lengths):
        own = None if case.keys else lengths
        return library.dot_product_attention(_each(q, k), k, v, key_value_seq_lengths=own, **options)

    same = case.operator != "gdpa"
    note = f"{'' if same else 'softmax, another function; '}tokamax {getattr(library, '__version__', '?')}"
    return on_padded(problem, attention, 0, multiple=TOKAMAX_ROWS, note=note, same=same)


BUILD = {"cudnn": cudnn, "tokamax": tokamax}
"""The subject of a problem by name; `CannotRun` where it does not run this case here."""
