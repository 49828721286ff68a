"""The norms of the personalized FFN's block: over all heads of a row, without affine parameters."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.dispatch import accumulator

EPSILON = 1e-5
"""Added to the variance and to the mean square (M)."""


def layer_norm(x: Float[Array, "rows heads dim"]) -> Float[Array, "rows heads dim"]:
    """Zero mean and unit variance over heads and dim, computed in float32 or better."""
    y = x.astype(accumulator(x.dtype))
    y = y - y.mean((-2, -1), keepdims=True)
    return (y * jax.lax.rsqrt(jnp.square(y).mean((-2, -1), keepdims=True) + EPSILON)).astype(x.dtype)


def rms_norm(x: Float[Array, "rows heads dim"]) -> Float[Array, "rows heads dim"]:
    """Unit root mean square over heads and dim, computed in float32 or better."""
    y = x.astype(accumulator(x.dtype))
    return (y * jax.lax.rsqrt(jnp.square(y).mean((-2, -1), keepdims=True) + EPSILON)).astype(x.dtype)
