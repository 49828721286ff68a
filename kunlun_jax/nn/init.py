"""Initial parameters. The numbers are jax.random's own, bit for bit, from a few compiled programs.

    near_identity:  W = [eye | eye ..] + deviation R,  R normal, scaled by fan-in; cut or padded where widths differ

jax.random compiles a program for each shape, and on a CPU each takes half a second, so a model with forty parameter
shapes starts twenty seconds late. A number from its counter-based generator depends only on the key and the position:
a longer draw begins with the numbers of a shorter one.

Source of near_identity: O. Random maps everywhere take the embeddings of a candidate and of an event, which share a
table, to unrelated coordinates, and no data set of ours is large enough to bring them back together (LOG.md).
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

DRAWS = (2**16, 2**20)
"""Lengths that are drawn; anything longer than the last is drawn at its own length."""
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
    """LeCun's initializer for kernels ``[..., inputs, outputs]`` times `scale`, truncated at two deviations."""

    def init(key, shape: tuple[int, ...], dtype=jnp.float32, *_, **__) -> jax.Array:
        variance = jnp.array(scale**2 / shape[-2], dtype)
        deviation = jnp.sqrt(variance) / jnp.array(_DEVIATION_CUT_AT_2, dtype)
        return _draw(_cut_at_2, key, shape, dtype) * deviation

    return init


LECUN = scaled(1.0)


def near_identity(deviation: float, maps: int = 1) -> Callable[..., jax.Array]:
    """Initializer for kernels ``[..., inputs, outputs]``: eye + ``deviation / sqrt(inputs)`` times normal numbers.

    A kernel may be several `maps` side by side, each of which starts so; they divide its outputs.
    """

    def init(key, shape: tuple[int, ...], dtype=jnp.float32, *_, **__) -> jax.Array:
        *_, inputs, outputs = shape
        random = normal(key, shape, dtype) * (deviation * inputs**-0.5)
        eyes = jnp.tile(jnp.eye(inputs, outputs // maps, dtype=dtype), (1, maps))
        return random + jnp.broadcast_to(eyes, shape)

    return init


Linear = functools.partial(nnx.Linear, kernel_init=LECUN)
"""`flax.nnx.Linear`, initialized as it is there."""
