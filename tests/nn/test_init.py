"""Parameters start with the numbers that jax.random and Flax's initializers give for their shapes, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kunlun_jax.nn import init

KEY = jax.random.key(3)


# Vectors and their tails, no number, and one size for each length that is drawn.
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 33, 9), (0, 4), (300, 301), (1025, 1024)], ids=str)
def test_numbers_are_those_of_the_shape(shape):
    np.testing.assert_array_equal(init.normal(KEY, shape), jax.random.normal(KEY, shape, jnp.float32))
    if len(shape) > 1 and 0 not in shape:
        batch_axis = tuple(range(len(shape) - 2))
        expected = nnx.initializers.lecun_normal(batch_axis=batch_axis)(KEY, shape, jnp.float32)
        np.testing.assert_array_equal(init.LECUN(KEY, shape), expected)
        # Newer versions of jax multiply by the deviation in another place.
        expected = nnx.initializers.normal(0.3)(KEY, shape, jnp.float32)
        np.testing.assert_allclose(init.normal_of(0.3)(KEY, shape), expected, rtol=1e-6)


def test_a_linear_map_starts_as_that_of_flax():
    ours, theirs = (kind(6, 5, rngs=nnx.Rngs(0)) for kind in (init.Linear, nnx.Linear))
    np.testing.assert_array_equal(ours.kernel[...], theirs.kernel[...])


def test_near_the_identity():
    kernel = np.asarray(init.near_identity(0.1)(KEY, (64, 48)))
    np.testing.assert_allclose((kernel - np.eye(64, 48)).std(), 0.1 / 8, rtol=0.1)
    beside = np.asarray(init.near_identity(0.1, maps=3)(KEY, (64, 144))) - np.tile(np.eye(64, 48), 3)
    np.testing.assert_allclose(beside.std(), 0.1 / 8, rtol=0.1)
