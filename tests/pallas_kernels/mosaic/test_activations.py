"""What the kernels compute in place of the activations: the stated errors are the true ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.activations import ACTIVATIONS
from pallas_kernels.mosaic.activations import ERRORS, KERNEL_ACTIVATIONS
from pallas_kernels.mosaic.score import in_chunks, pointwise

# Dense where the functions bend, and far out, where a polynomial that is not held would run away.
X = np.concatenate([np.linspace(-12, 12, 240_001), np.linspace(-1000, 1000, 20_001)])


def exact(name):
    with jax.enable_x64(True):
        x = jnp.asarray(X, jnp.float64)
        return [np.asarray(part(x)) for part in ACTIVATIONS[name]]


def test_every_activation_has_a_kernel_form():
    assert set(KERNEL_ACTIVATIONS) == set(ACTIVATIONS)


@pytest.mark.parametrize("polynomial", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_errors_are_those_stated(name, polynomial):
    x = jnp.asarray(X, jnp.float32)
    got = jax.jit(lambda x: KERNEL_ACTIVATIONS[name](x, polynomial))(x)
    # Roundings in float32 come on top.
    rounding = 1e-6 * np.maximum(1.0, np.abs(X) ** (2 if name == "relu_squared" else 1))
    for value, true, bound in zip(got, exact(name), ERRORS.get((name, polynomial), (1e-6, 1e-6)), strict=True):
        error = np.abs(np.asarray(value, np.float64) - true)
        kinks = np.isin(np.abs(X), (0.0, 3.0))  # where the derivative jumps, float32 and float64 may take two sides
        assert (error - rounding)[~kinks].max() <= bound
        if bound > 1e-5:
            assert error[np.abs(X) <= 12].max() > bound / 3, "the stated error is far too large"


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_polynomials_are_held_outside_their_range(name):
    x = jnp.asarray([-1e4, -60.0, -8.0, 8.0, 60.0, 1e4], jnp.float32)
    value, derivative = KERNEL_ACTIVATIONS[name](x, True)
    np.testing.assert_allclose(value, jnp.maximum(x, 0), rtol=1e-6, atol=1e-6 * 1e4)
    np.testing.assert_allclose(derivative, (x > 0).astype(jnp.float32), atol=2e-5)


def test_a_share_of_the_columns_takes_the_polynomial():
    s = jnp.asarray(np.random.default_rng(0).normal(size=(8, 64)), jnp.float32)
    score = pointwise("gelu", 1.0, 1.0)
    whole = {p: score.weights(s, p) for p in (False, True)}
    assert (np.asarray(whole[False]) != np.asarray(whole[True])).mean() > 0.5
    for eighths in (0, 2, 4, 8):
        mixed = in_chunks(score.weights, eighths, s)
        split = 64 - 8 * eighths
        np.testing.assert_array_equal(mixed[:, :split], whole[False][:, :split])
        np.testing.assert_array_equal(mixed[:, split:], whole[True][:, split:])
