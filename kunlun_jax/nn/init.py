"""How parameters start. Numbers are jax.random's own, bit for bit, from few compiled programs.

    near_identity:  W = eye + deviation R,   R standard normal by fan-in, cut or padded where the widths differ

jax.random compiles a program for each shape, and on a CPU each takes half a second, so a model with forty shapes of
parameters starts twenty seconds late. An entry of its counter-based generator depends on the key and the place alone:
the first numbers of a longer draw are those of a shorter one.

Source of near_identity: O. A random map in every place takes the embeddings of a candidate and of an event, which
share a table, to unrelated coordinates, and no data set of ours is large enough to bring them back together (LOG.md).
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

DRAWS = (2**16, 2**20)
"""Lengths that are drawn; what is longer than the last is drawn as it is."""
_DEVIATION_CUT_AT_2 = 0.87962566103423978


def _draw(distribution: Callable[..., jax.Array], key, shape: tuple[int, ...], dtype) -> jax.Array:
    size = math.prod(shape)
    length = next((length for length in DRAWS if size <= length), size)
    return distribution(key, (length,), dtype)[:size].reshape(shape)


def _cut_at_2(key, shape: tuple[int, ...], dtype) -> jax.Array:
    return jax.random.truncated_normal(key, -2, 2, shape, dtype)


def normal(key, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """`jax.random.normal`: standard normal numbers of `shape`."""
    return _draw(jax.random.normal, key, shape, dtype)


def normal_of(deviation: float) -> Callable[..., jax.Array]:
    """An initializer: normal numbers of this standard deviation."""
    return lambda key, shape, dtype=jnp.float32, *_, **__: normal(key, shape, dtype) * jnp.array(deviation, dtype)


def scaled(scale: float) -> Callable[..., jax.Array]:
    """LeCun's initializer of kernels ``[..., inputs, outputs]`` times `scale`, cut at two deviations."""

    def init(key, shape: tuple[int, ...], dtype=jnp.float32, *_, **__) -> jax.Array:
        variance = jnp.array(scale**2 / shape[-2], dtype)
        deviation = jnp.sqrt(variance) / jnp.array(_DEVIATION_CUT_AT_2, dtype)
        return _draw(_cut_at_2, key, shape, dtype) * deviation

    return init


LECUN = scaled(1.0)


def near_identity(deviation: float) -> Callable[..., jax.Array]:
    """An initializer of kernels ``[..., inputs, outputs]``: eye plus `deviation` times normal numbers by fan-in."""

    def init(key, shape: tuple[int, ...], dtype=jnp.float32, *_, **__) -> jax.Array:
        random = normal(key, shape, dtype) * (deviation * shape[-2] ** -0.5)
        return random + jnp.broadcast_to(jnp.eye(*shape[-2:], dtype=dtype), shape)

    return init


Linear = functools.partial(nnx.Linear, kernel_init=LECUN)
"""`flax.nnx.Linear`, whose kernel starts as it does there."""
