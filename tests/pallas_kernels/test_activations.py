"""Values against jax.nn, derivatives against automatic differentiation, kinks included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.activations import ACTIVATIONS, activation

EXPECTED = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.01),
    "relu_squared": lambda x: jnp.square(jax.nn.relu(x)),
    "hardswish": jax.nn.hard_swish,
    "identity": lambda x: x,
}


def test_the_list_is_complete():
    assert set(ACTIVATIONS) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_value_and_derivative(name):
    with jax.enable_x64(True):
        # 0.0005 keeps the points off the kinks of hardswish, where the derivative is a convention.
        x = jnp.append(jnp.linspace(-12, 12, 4001) + 0.0005, 0.0)
        function = activation(name)
        # In the lower tail 1 + tanh cancels: an error of one ulp of 1, times x, and times x^2 in the derivative.
        np.testing.assert_allclose(function.value(x), EXPECTED[name](x), rtol=1e-13, atol=1e-14)
        derivative = jax.vmap(jax.grad(EXPECTED[name]))(x)
        np.testing.assert_allclose(function.derivative(x), derivative, rtol=1e-12, atol=1e-13)
        assert function.value(jnp.zeros(())) == 0


@pytest.mark.parametrize("name", EXPECTED)
def test_dtype_is_kept_and_large_scores_stay_finite(name):
    x = jnp.array([-1e4, -30.0, 0.0, 30.0, 1e4], jnp.float32)
    for result in (activation(name).value(x), activation(name).derivative(x)):
        assert result.dtype == jnp.float32
        assert np.isfinite(result).all()


def test_unknown_name():
    with pytest.raises(ValueError, match=r"activation='swish' .*gelu, gelu_tanh, silu"):
        activation("swish")
