"""The three operators as a program has them that pads: rectangles of the longest history, and scores of every pair.

What the jagged operators are measured against in `experiments.mfu`. Packed rows go into ``[batch, longest, ...]``, two
batched matrix products run over whole rectangles with the activation or a masked softmax between them, and rows go
back. Scores and weights of all pairs go through memory, in the dtype of the operands; a softmax computes in float32.
Gradients are those of the products, so the backward pass reads the stored weights.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import jagged
from pallas_kernels.activations import activation as activation_by_name
from pallas_kernels.dispatch import Implementation, accumulator
from pallas_kernels.operators.gdpa import api as gdpa_api
from pallas_kernels.operators.seed_attention import api as seed_api
from pallas_kernels.operators.window_attention import api as window_api
from pallas_kernels.operators.window_attention.reference import each_head


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def pad(
    longest: int,
    values: Float[Array, "rows heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
) -> Float[Array, "batch longest heads dim"]:
    """Packed rows as rectangles of `longest` rows, zero past each example's length; what is longer is cut off.

    The gradient is a gather like the function itself, where XLA's own would be a scatter.
    """
    position = jnp.arange(longest, dtype=jnp.int32)[None, :]
    row = jnp.where(position < lengths[:, None], row_splits[:-1, None] + position, values.shape[0])
    return values.at[row].get(mode="fill", fill_value=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def unpad(
    rows: int,
    padded: Float[Array, "batch longest heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
) -> Float[Array, "rows heads dim"]:
    """`rows` packed rows from rectangles, zero where there is no event; each of the two is the other's gradient."""
    longest = padded.shape[1]
    example = jnp.minimum(jagged.example_ids(row_splits, rows), lengths.shape[0] - 1)
    position = jnp.minimum(jnp.arange(rows, dtype=jnp.int32) - row_splits[example], longest - 1)
    flat = rearrange(padded, "batch longest heads dim -> (batch longest) heads dim")
    return jagged.zero_padding(flat[example * longest + position], jagged.row_mask(row_splits, lengths, rows))


def _pad_forward(longest, values, row_splits, lengths):
    return pad(longest, values, row_splits, lengths), (values.shape[0], row_splits, lengths)


def _unpad_forward(rows, padded, row_splits, lengths):
    return unpad(rows, padded, row_splits, lengths), (padded.shape[1], row_splits, lengths)


pad.defvjp(_pad_forward, lambda _, saved, gradient: (unpad(saved[0], gradient, *saved[1:]), None, None))
unpad.defvjp(_unpad_forward, lambda _, saved, gradient: (pad(saved[0], gradient, *saved[1:]), None, None))


def masked_softmax(
    scores: Float[Array, "batch heads queries keys"], mask: Bool[Array, "batch 1 queries_or_1 keys"]
) -> Float[Array, "batch heads queries keys"]:
    """Softmax over the keys in `mask`, in the dtype of the scores; zeros for a query that has none."""
    dtype = accumulator(scores.dtype)
    weights = jax.nn.softmax(jnp.where(mask, scores.astype(dtype), jnp.finfo(dtype).min), axis=-1)
    return jnp.where(mask, weights, jnp.zeros((), dtype)).astype(scores.dtype)


def gdpa(longest: int, q, k, v, row_splits, lengths, *, activation: str, pre_scale: float, post_scale: float):
    """`pallas_kernels.gdpa` with dense keys, padded.

    With the identity for activation and fewer keys than queries, keys meet values first: a program that pads would
    write InterFormer's map of each example as one product (`kunlun_jax.nn.personalized_linear`), not as two.
    """
    queries = pad(longest, q, row_splits, lengths)
    if activation == "identity" and k.shape[1] < longest:
        maps = jnp.einsum("bkhd,bkhe->bhde", (pre_scale * post_scale) * k, v)
        return unpad(q.shape[0], jnp.einsum("bqhd,bhde->bqhe", queries, maps), row_splits, lengths)
    weights = activation_by_name(activation).value(pre_scale * jnp.einsum("bqhd,bkhd->bhqk", queries, k))
    out = post_scale * jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)
    return unpad(q.shape[0], out, row_splits, lengths)


def window_attention(longest: int, q, k, v, row_splits, lengths, *, window: tuple[int, int], scale: float):
    """`pallas_kernels.window_attention`, padded: scores of all pairs, those outside the window masked."""
    queries, keys, values = (pad(longest, each_head(x, q.shape[1]), row_splits, lengths) for x in (q, k, v))
    position = jnp.arange(longest, dtype=jnp.int32)
    distance = position[None, :] - position[:, None]
    inside = (distance >= -window[0]) & (distance <= window[1])
    mask = inside[None, None] & (position[None, :] < lengths[:, None])[:, None, None, :]
    weights = masked_softmax(scale * jnp.einsum("bqhd,bkhd->bhqk", queries, keys), mask)
    return unpad(q.shape[0], jnp.einsum("bhqk,bkhd->bqhd", weights, values), row_splits, lengths)


def seed_attention(longest: int, q, k, v, row_splits, lengths, *, scale: float):
    """`pallas_kernels.seed_attention`, padded."""
    keys, values = (pad(longest, x, row_splits, lengths) for x in (k, v))
    mask = (jnp.arange(longest, dtype=jnp.int32)[None, :] < lengths[:, None])[:, None, None, :]
    scores = jnp.einsum("shd,bkhd->bhsk" if q.ndim == 3 else "bshd,bkhd->bhsk", q, keys)
    return jnp.einsum("bhsk,bkhd->bshd", masked_softmax(scale * scores, mask), values)


PADDED: dict[Any, Callable] = {gdpa_api: gdpa, window_api: window_attention, seed_api: seed_attention}
"""The module that lists an operator's implementations -> its padded form."""


@contextlib.contextmanager
def registered(longest: int, fused: str) -> Iterator[tuple[str, str]]:
    """Inside, the operators have two implementations more, after all others, so that nobody gets them unasked.

    Args:
      longest: rows of the rectangles; a longer history would be cut off without a word, so no batch may hold one.
      fused: name of the implementation that the second one has for what it does not pad.

    Yields:
      Names for ``implementation=``: of the one that pads in all three operators, and of that which pads in gdpa alone.

    Raises:
      ValueError: an operator has no implementation `fused`.
    """
    names = f"padded_{longest}", f"padded_gdpa_{longest}"
    before = {api: api.IMPLEMENTATIONS for api in PADDED}
    try:
        for api, function in PADDED.items():
            padded = Implementation(names[0], functools.partial(function, longest))
            other = next((one for one in before[api] if one.name == fused), None)
            if other is None:
                raise ValueError(f"fused is {fused!r}; {api.__name__} has {[one.name for one in before[api]]}")
            second = padded if api is gdpa_api else other
            second = Implementation(names[1], second.function, second.refusal)
            api.IMPLEMENTATIONS = (*before[api], padded, second)
        yield names
    finally:
        for api, implementations in before.items():
            api.IMPLEMENTATIONS = implementations
