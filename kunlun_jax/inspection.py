"""What attends to what, for one example: weights that the operators never store, computed again for a look at them."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kunlun_jax.batch import Jagged
from kunlun_jax.nn.attention import WindowAttention
from kunlun_jax.nn.pooling import SeedAttention


def example_rows(events: Jagged, example: int) -> slice:
    """Where the events of one example stand in the packed rows."""
    start = int(events.row_splits[example])
    return slice(start, start + int(events.lengths[example]))


def seed_weights(attention: SeedAttention, events: Jagged, example: int) -> Float[np.ndarray, "heads seeds events"]:
    """How much each seed takes of each event of an example, oldest first; each seed's weights sum to one."""
    q, k, _ = attention.queries_keys_values(events)
    k = k[example_rows(events, example)]
    scores = jnp.einsum("shd,thd->hst", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    return np.asarray(jax.nn.softmax(scores, axis=-1))


def window_weights(
    attention: WindowAttention, events: Jagged, age: Float[Array, " rows"], example: int
) -> Float[np.ndarray, "heads queries keys"]:
    """How much each event of an example takes of each other one; zero outside the window."""
    q, k, _ = attention.queries_keys_values(events, age)
    rows = example_rows(events, example)
    q, k = q[rows], k[rows]
    scores = jnp.einsum("qhd,khd->hqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    position = jnp.arange(q.shape[0])
    inside = jnp.abs(position[:, None] - position[None, :]) <= attention.window
    return np.asarray(jax.nn.softmax(jnp.where(inside[None], scores, -jnp.inf), axis=-1))
