"""The pointwise activations of gdpa, each with its derivative.

All are zero at zero. The derivative is written out because a fused kernel recomputes it from the score; at a
kink it is the one that `jax.grad` of the `jax.nn` function gives. Names: gelu (erf), gelu_tanh, silu, relu,
leaky_relu (slope 0.01), relu_squared, hardswish, identity.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

_LEAK = 0.01
_TANH_SCALE = math.sqrt(2 / math.pi)
_TANH_CUBIC = 0.044715


class Activation(NamedTuple):
    """A pointwise function and its derivative, both from float arrays to float arrays of the same shape and dtype."""

    value: Callable[[jax.Array], jax.Array]
    derivative: Callable[[jax.Array], jax.Array]


@jax.custom_jvp
def _erf(x):
    """`jax.lax.erf` with its derivative written out.

    jax 0.12.0 builds erf from a polynomial whose constants do not vary over the mesh, and so refuses to differentiate
    it inside `jax.shard_map` ("Primitive polynomial requires varying manual axes to match").
    """
    return jax.lax.erf(x)


@_erf.defjvp
def _erf_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    return _erf(x), t * jnp.exp(-x * x) * (2 / math.sqrt(math.pi))


def _gelu(x):
    return 0.5 * x * (1 + _erf(x * math.sqrt(0.5)))


def _gelu_derivative(x):
    density = jnp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    return 0.5 * (1 + _erf(x * math.sqrt(0.5))) + x * density


def _gelu_tanh(x):
    return 0.5 * x * (1 + jnp.tanh(_TANH_SCALE * x * (1 + _TANH_CUBIC * x * x)))


def _gelu_tanh_derivative(x):
    t = jnp.tanh(_TANH_SCALE * x * (1 + _TANH_CUBIC * x * x))
    return 0.5 * x * (1 - t * t) * (_TANH_SCALE * (1 + 3 * _TANH_CUBIC * x * x)) + 0.5 * (1 + t)


def _silu_derivative(x):
    s = jax.nn.sigmoid(x)
    return s * (1 + x * (1 - s))


def _step(x):
    return jnp.where(x > 0, jnp.ones((), x.dtype), jnp.zeros((), x.dtype))


def _hardswish_derivative(x):
    inner = (2 * x + 3) / 6
    return jnp.where(x >= 3, jnp.ones((), x.dtype), jnp.where(x <= -3, jnp.zeros((), x.dtype), inner))


ACTIVATIONS: dict[str, Activation] = {
    "gelu": Activation(_gelu, _gelu_derivative),
    "gelu_tanh": Activation(_gelu_tanh, _gelu_tanh_derivative),
    "silu": Activation(lambda x: x * jax.nn.sigmoid(x), _silu_derivative),
    "relu": Activation(jax.nn.relu, _step),
    "leaky_relu": Activation(
        lambda x: jnp.where(x >= 0, x, _LEAK * x),
        lambda x: jnp.where(x >= 0, jnp.ones((), x.dtype), jnp.full((), _LEAK, x.dtype)),
    ),
    "relu_squared": Activation(lambda x: jnp.square(jax.nn.relu(x)), lambda x: 2 * jax.nn.relu(x)),
    "hardswish": Activation(lambda x: x * jnp.clip(x + 3, 0, 6) / 6, _hardswish_derivative),
    "identity": Activation(lambda x: x, jnp.ones_like),
}


def activation(name: str) -> Activation:
    """The activation called `name`; ValueError with the list of names if there is none."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r} does not exist; there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
