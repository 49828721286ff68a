"""Maps that start near the identity, so that what two inputs share before them is still shared behind them.

    W = eye + deviation R,   R standard normal by fan-in, cut or padded where the widths differ

Source: O. A random map in every place takes the embeddings of a candidate and of an event, which share a table, to
unrelated coordinates, and no data set of ours is large enough to bring them back together (LOG.md).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def near_identity(deviation: float) -> Callable[..., jax.Array]:
    """An initializer of kernels ``[..., inputs, outputs]``: eye plus `deviation` times what LeCun's draws."""

    def init(key, shape: tuple[int, ...], dtype=jnp.float32, *_, **__) -> jax.Array:
        random = jax.random.normal(key, shape, dtype) * (deviation * shape[-2] ** -0.5)
        return random + jnp.broadcast_to(jnp.eye(*shape[-2:], dtype=dtype), shape)

    return init


def scaled(scale: float) -> Callable[..., jax.Array]:
    """LeCun's initializer times `scale`."""
    return jax.nn.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal")
