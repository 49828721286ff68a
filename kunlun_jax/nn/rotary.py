"""ROTE, rotary temporal embedding.

    angle of channel pair i at row t  =  t * theta_i + tau_t * phi_i,      tau_t = log(1 + dt_t / t_scale)

theta_i = base^(-i / pairs) as in RoPE, phi_i = time_base^(-i / pairs). dt is the age of the event at
request time (O, default) or the gap to the previous event (the other reading). Attention then depends on differences:
of positions, and of logarithms of time. Source: Kunlun (R for the logarithm, r for the mix, O for phi and t_scale).
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kunlun_jax.ranges import above, check


@dataclasses.dataclass(frozen=True)
class RoteConfig:
    """How events' positions and times rotate the queries and keys of self-attention."""

    position: bool = True
    """Whether the position in the history rotates the channels."""
    time: bool = True
    """Whether the time of the event does."""
    reading: Literal["age", "gap"] = "age"
    """dt: the event's age at request time (O), or the gap to the previous event (the alternative reading)."""
    t_scale: float = 60.0
    """Seconds that count as one in log(1 + dt / t_scale) (O)."""
    base: float = 10_000.0
    """theta_i = base^(-i / pairs)."""
    time_base: float = 100.0
    """phi_i = time_base^(-i / pairs) (O)."""

    RANGES: ClassVar = {"t_scale": above(0), "base": above(0), "time_base": above(0)}

    def __post_init__(self):
        check(self, "model.rote")


def event_times(
    age: Float[Array, " rows"], positions: Int[Array, " rows"], config: RoteConfig
) -> Float[Array, " rows"]:
    """Tau of each row: log(1 + dt / t_scale), dt in seconds, read as `config.reading` says; first events have gap 0."""
    if config.reading == "age":
        dt = age
    else:
        dt = jnp.where(positions == 0, 0.0, jnp.roll(age, 1) - age)
    # Alignment gaps may hold anything; a negative dt there must not make a NaN that masking cannot undo.
    return jnp.log1p(jnp.maximum(dt, 0.0) / config.t_scale)


def rotate(
    x: Float[Array, "rows heads dim"],
    positions: Int[Array, " rows"],
    tau: Float[Array, " rows"],
    config: RoteConfig,
) -> Float[Array, "rows heads dim"]:
    """Rotates channel pairs ``(i, i + dim / 2)`` of `x`, by angles in the dtype of `tau`. `dim` must be even."""
    pairs = x.shape[-1] // 2
    exponent = jnp.arange(pairs, dtype=tau.dtype) / pairs
    angle = jnp.zeros((x.shape[0], pairs), tau.dtype)
    if config.position:
        angle += positions.astype(tau.dtype)[:, None] * (config.base**-exponent)[None, :]
    if config.time:
        angle += tau[:, None] * (config.time_base**-exponent)[None, :]
    # Without the barrier XLA recomputes the angles for every head, wherever something reads a rotated channel.
    cos, sin = jax.lax.optimization_barrier((jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)))
    cos, sin = cos[:, None, :], sin[:, None, :]
    first, second = x[..., :pairs], x[..., pairs:]
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
