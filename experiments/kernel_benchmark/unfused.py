"""The operators as two batched matrix products on padded arrays with the activation between them.

This is what a program without a fused kernel does: scores and weights of every pair go through memory. It serves as a
peer in bf16, and, for a few examples, as the truth in float32 and the plain bf16 yardstick of an error.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kernel_benchmark.cases import Case, Problem
from pallas_kernels.activations import activation as activation_by_name
from pallas_kernels.operators.gdpa.norms import layer_norm, rms_norm


def attend(case: Case, q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    """The operator of `case` on padded arrays, all in their dtype; norms as `pallas_kernels` has them.

    Args:
      case: which operator and options; its batch and lengths are ignored.
      q: ``[batch, queries, heads, dim]``, or ``[seeds, heads, dim]`` for all examples.
      k: ``[batch, keys, heads, dim]``.
      v: likewise.
      lengths: rows of each example. What is computed for queries after it means nothing.

    Returns:
      ``[batch, queries, heads, dim]``.
    """
    if case.block:
        normed = jax.vmap(layer_norm)(q)
        return jax.vmap(rms_norm)(_attend(case, normed, k, v, lengths) + normed) + q
    return _attend(case, q, k, v, lengths)


def _attend(case: Case, q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    scores = jnp.einsum("qhd,bkhd->bhqk" if case.seeds else "bqhd,bkhd->bhqk", q, k) * jnp.asarray(case.scale, q.dtype)
    mask = None
    if case.keys is None:
        key = jnp.arange(k.shape[1], dtype=jnp.int32)
        mask = (key[None, :] < lengths[:, None])[:, None, None, :]
        if case.window is not None:
            offset = key[None, :] - jnp.arange(q.shape[1], dtype=jnp.int32)[:, None]
            mask = mask & ((offset >= -case.window[0]) & (offset <= case.window[1]))[None, None]
    if case.activation == "softmax":
        weights = jax.nn.softmax(scores, axis=-1, where=mask)
    else:
        weights = activation_by_name(case.activation).value(scores)
    # Masks come after the activation: not every one is zero where a score was set to zero.
    weights = weights if mask is None else jnp.where(mask, weights, jnp.zeros((), weights.dtype))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def pad(values: jax.Array, splits: np.ndarray, lengths: np.ndarray, rows: int) -> jax.Array:
    """Packed rows as ``[batch, rows, ...]``, zero past each example's length."""
    at = np.arange(rows)[None, :]
    index = np.where(at < lengths[:, None], splits[: len(lengths), None] + at, values.shape[0])
    return values.at[jnp.asarray(index, jnp.int32)].get(mode="fill", fill_value=0)


def padded(problem: Problem, examples: np.ndarray, rows: int) -> tuple[tuple[jax.Array, ...], jax.Array, jax.Array]:
    """Operands, cotangent and lengths of some examples of a problem, padded to `rows`."""
    lengths, splits = problem.case.lengths()[examples], problem.host_splits[:-1][examples]

    def take(array, packed):
        if packed:
            return pad(array, splits, lengths, rows)
        return array[jnp.asarray(examples)] if array.ndim == 4 else array

    operands = tuple(take(x, packed) for x, packed in zip(problem.operands, problem.packed, strict=False))
    return operands, take(problem.cotangent, problem.packed[3]), jnp.asarray(lengths)


def scores_bytes(case: Case, batch: int, rows: int) -> int:
    """Bytes of the bf16 scores of `batch` padded examples."""
    return 2 * batch * case.heads * (case.seeds or rows) * (case.keys or rows)


TRUTH_ROWS = 2048
"""gdpa is compared at this padded length whatever the case's own, so that few programs are compiled."""
MOST_SCORES = 2**31
"""Bytes of bf16 scores up to which a truth is worked out; float32 scores and their gradients take 6 times that."""


def truth(problem: Problem) -> dict[str, dict[str, list[np.ndarray]]] | None:
    """What the compared examples should give, and what plain bf16 gives.

    Returns:
      ``{"float32" | "bfloat16": {"forward": ..., "backward": ...}}``, each pass as `pick` gives it; None for sequences
      so long that their scores do not fit.
    """
    case = problem.case
    rows = TRUTH_ROWS if case.operator == "gdpa" and case.max_length > 64 else -(-case.max_length // 8) * 8
    examples = np.array(case.compared())
    if scores_bytes(case, len(examples), rows) > MOST_SCORES:
        return None
    operands, cotangent, lengths = padded(problem, examples, rows)
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    # The name of a case must not be part of what is compiled, nor its length.
    like = dataclasses.replace(case, group="", batch=1, max_length=1, sparsity=1.0)
    for dtype in (jnp.float32, jnp.bfloat16):
        arguments = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), (operands, cotangent))
        with jax.default_matmul_precision("highest"):
            out, gradients = _with_gradients(like)(*arguments, lengths)
        results = {"forward": out, "backward": gradients}
        found[jnp.dtype(dtype).name] = {p: pick(problem, p, result, examples) for p, result in results.items()}
    return found


@functools.cache
def _with_gradients(case: Case):
    def run(operands, cotangent, lengths):
        out, pullback = jax.vjp(lambda *operands: attend(case, *operands, lengths=lengths), *operands)
        return out, pullback(cotangent)

    return jax.jit(run)


def pick(problem: Problem, pass_: str, result, examples: np.ndarray | None = None) -> list[np.ndarray]:
    """The rows of the compared examples in each result of a pass, float32 ``[rows, heads, dim]``.

    Args:
      problem: its case says which are compared.
      pass_: "forward" or "backward".
      result: the output, or gradients of q, k, v.
      examples: None for results as `problem.packed` says; else those are padded and of these examples, which hold the
        compared ones.
    """
    results, packed = ([result], problem.packed[3:]) if pass_ == "forward" else (result, problem.packed[:3])
    subset = list(problem.case.compared())
    lengths = problem.case.lengths()[subset]
    if examples is None:
        rows = np.concatenate(
            [start + np.arange(n) for start, n in zip(problem.host_splits[subset], lengths, strict=True)]
        )
    place = subset if examples is None else [int(np.flatnonzero(examples == example)[0]) for example in subset]
    picked = []
    for x, is_packed in zip(results, packed, strict=True):
        if is_packed and examples is None:
            picked.append(np.asarray(x[jnp.asarray(rows)].astype(jnp.float32)))
        elif x.ndim == 4:  # the gradient of shared seeds sums over all examples, so a few of them do not tell it
            values = np.asarray(x[jnp.asarray(place)].astype(jnp.float32))
            parts = [own[:n] if is_packed else own for own, n in zip(values, lengths, strict=True)]
            picked.append(np.concatenate(parts))
    return picked


def error_ratios(found: list[np.ndarray], exact: list[np.ndarray], plain: list[np.ndarray]) -> list[float]:
    """``max|found - float32| / max|plain bf16 - float32|`` of each result."""
    return [
        float(np.abs(x - y).max() / max(np.abs(z - y).max(), 1e-30))
        for x, y, z in zip(found, exact, plain, strict=True)
    ]
