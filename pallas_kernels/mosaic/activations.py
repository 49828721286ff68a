"""The activations of gdpa as a kernel computes them: tanh, or a polynomial, in place of erf.

On a GPU a score costs one operation of the special-function units (tanh, exp2), of which a multiprocessor does 16 per
clock; where they are the limit, a share of the scores takes a polynomial on the FMA units instead. With
``Phi(x) = (1 + erf(x / sqrt 2)) / 2``:

- gelu, special functions: Phi as ``(1 + tanh(x p(x^2))) / 2``, the derivative Phi + x phi with phi from exp2.
- gelu, polynomial: ``Phi = 1/2 + x p(x^2)`` on x clamped to the range where Phi reaches 0 and 1, the derivative
  likewise with its own polynomial. Outside the range Phi and the derivative are 0 or 1, up to 2e-5 of rounding.
- gelu_tanh: its definition, or polynomials fitted to it.
- silu: ``(1 + tanh(x / 2)) / 2``. The others need no approximation.

The largest errors over all x are in `ERRORS` (the tests measure them), apart from rounding, 1e-6 of x. The hardware's
tanh adds up to 2^-11 of itself.

Source: coefficients from a minimax fit (Lawson's iteration) with the end of the range held exactly (O).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Pair = tuple[jax.Array, jax.Array]

_GELU_TANH_SCALE, _GELU_TANH_CUBIC = math.sqrt(2 / math.pi), 0.044715

# tanh(x p(x^2)) for 2 Phi - 1. The argument of p stops at 25, where tanh is 1 in float32.
_PHI_TANH = (0.797507527, 0.0370060658, -0.000351607361)

# (end of the range, coefficients of p): the function is 1/2 + x p(x^2).
_PHI = (3.85, (0.398641614, -0.0656390612, 0.00926511179, -0.000917743617, 5.89153246e-05, -2.16494248e-06,
               3.4170298e-08))  # fmt: skip
_GELU_DERIVATIVE = (4.1, (0.796417586, -0.261208306, 0.0552882797, -0.00748060385, 0.000653091441, -3.5403161e-05,
                          1.07739813e-06, -1.40032425e-08))  # fmt: skip
_PHI_OF_TANH = (3.75, (0.398667203, -0.0660072113, 0.0095029225, -0.000975332029, 6.56036745e-05, -2.54056807e-06,
                       4.23588722e-08))  # fmt: skip
_GELU_TANH_DERIVATIVE = (4.0, (0.796493941, -0.262600605, 0.056610202, -0.00791729344, 0.000722458641,
                               -4.11895047e-05, 1.32193044e-06, -1.81343333e-08))  # fmt: skip

ERRORS = {
    ("gelu", False): (3e-5, 6e-5),
    ("gelu", True): (2.9e-4, 3.7e-4),
    ("gelu_tanh", False): (1e-6, 1e-6),
    ("gelu_tanh", True): (2.6e-4, 3.5e-4),
    ("silu", False): (1e-6, 1e-6),
}
"""(activation, polynomial) -> largest absolute error of value and derivative, with an exact tanh; others are exact."""


def _odd(x: jax.Array, end: float, coefficients: tuple[float, ...]) -> jax.Array:
    x = jnp.clip(x, -end, end)
    square = x * x
    total = square * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        total = total * square + coefficient
    return x * total + 0.5


def _gelu(x: jax.Array, polynomial: bool) -> Pair:
    if polynomial:
        return x * _odd(x, *_PHI), _odd(x, *_GELU_DERIVATIVE)
    square = jnp.minimum(x * x, 25.0)
    c0, c1, c2 = _PHI_TANH
    phi = jnp.tanh(x * ((square * c2 + c1) * square + c0)) * 0.5 + 0.5
    density = jnp.exp2(x * x * (-0.5 * math.log2(math.e))) * (1 / math.sqrt(2 * math.pi))
    return x * phi, phi + x * density


def _gelu_tanh(x: jax.Array, polynomial: bool) -> Pair:
    if polynomial:
        return x * _odd(x, *_PHI_OF_TANH), _odd(x, *_GELU_TANH_DERIVATIVE)
    square = x * x
    t = jnp.tanh(x * (square * (_GELU_TANH_SCALE * _GELU_TANH_CUBIC) + _GELU_TANH_SCALE))
    half = t * 0.5 + 0.5
    inner = square * (3 * _GELU_TANH_SCALE * _GELU_TANH_CUBIC) + _GELU_TANH_SCALE
    return x * half, half + x * 0.5 * (1.0 - t * t) * inner


def _silu(x: jax.Array, polynomial: bool) -> Pair:
    s = jnp.tanh(x * 0.5) * 0.5 + 0.5
    return x * s, s * (x * (1.0 - s) + 1.0)


def _relu(x: jax.Array, polynomial: bool) -> Pair:
    return jnp.maximum(x, 0.0), jnp.where(x > 0.0, jnp.ones_like(x), jnp.zeros_like(x))


def _leaky_relu(x: jax.Array, polynomial: bool) -> Pair:
    return jnp.maximum(x, x * 0.01), jnp.where(x >= 0.0, jnp.ones_like(x), jnp.full_like(x, 0.01))


def _relu_squared(x: jax.Array, polynomial: bool) -> Pair:
    positive = jnp.maximum(x, 0.0)
    return positive * positive, positive * 2.0


def _hardswish(x: jax.Array, polynomial: bool) -> Pair:
    inside = (x * 2.0 + 3.0) * (1 / 6)
    upper = jnp.where(x >= 3.0, jnp.ones_like(x), inside)
    return x * jnp.clip(x + 3.0, 0.0, 6.0) * (1 / 6), jnp.where(x <= -3.0, jnp.zeros_like(x), upper)


def _identity(x: jax.Array, polynomial: bool) -> Pair:
    return x, jnp.ones_like(x)


KERNEL_ACTIVATIONS: dict[str, Callable[[jax.Array, bool], Pair]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "relu_squared": _relu_squared,
    "hardswish": _hardswish,
    "identity": _identity,
}
"""name -> function of (float32 scores of any shape, polynomial) that gives value and derivative.

Whichever of the two a caller does not use costs nothing: the compiler removes it.
"""
