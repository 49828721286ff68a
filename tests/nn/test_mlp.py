"""MLP: its layers, its activations, its count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kunlun_jax.nn.mlp import MLP, activation
from tests.examples import build


@pytest.mark.parametrize("name", ["relu", "silu", "gelu"])
def test_activation_stands_between_layers_and_not_behind_the_last(name):
    mlp = build(lambda: MLP((3, 8, 8, 6), activation=name, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(0).normal(size=(4, 9, 3)).astype(np.float32)
    h = x
    for number, layer in enumerate(mlp.layers):
        h = h @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
        h = np.asarray(activation(name)(jnp.asarray(h))) if number < 2 else h
    y = np.asarray(jax.jit(mlp)(jnp.asarray(x)))
    np.testing.assert_allclose(y, h, atol=1e-5)
    assert y.min() < -0.3, "all three activations are above that, so none stands after the last layer"


def test_gelu_is_the_exact_one():
    x = np.linspace(-3, 3, 13)
    exact = [0.5 * v * (1 + float(jax.lax.erf(v / np.sqrt(2)))) for v in x]
    np.testing.assert_allclose(activation("gelu")(jnp.asarray(x, jnp.float32)), exact, atol=1e-6)


def test_gelu_in_bfloat16_is_the_exact_one_rounded():
    """Where 1 + erf cancels, too, of which bfloat16 by itself may leave nothing."""
    x = jnp.linspace(-4, 3, 57).astype(jnp.bfloat16)
    exact = jax.nn.gelu(x.astype(jnp.float32), approximate=False)
    found = activation("gelu")(x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


def test_unknown_activation_lists_those_there_are():
    with pytest.raises(ValueError, match=r"activation 'tanh' .*\['gelu', 'relu', 'silu'\]"):
        activation("tanh")


def test_flops_and_dtypes():
    mlp = build(lambda: MLP((3, 5, 2), dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    assert mlp.flops() == 2 * (3 * 5 + 5 * 2)
    assert mlp(jnp.ones((1, 3))).dtype == jnp.bfloat16
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(mlp, nnx.Param))} == {"float32"}
