"""ROTE, rotary temporal embedding.

    angle of channel pair i at position t = t theta_i + tau_t phi_i,      tau_t = log(1 + dt_t / t_scale)

theta_i = base^(-i / pairs), phi_i = time_base^(-i / pairs). Source: Kunlun (R for the logarithm, r for the
mix, O for phi and for dt, the age of the event or the gap to the previous one).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from kunlun_jax.nn.rotary import RoteConfig


def rote_angles(age: Float[Tensor, "batch time"], pairs: int, config: RoteConfig) -> Float[Tensor, "batch time pairs"]:
    """Angles of `pairs` channel pairs at each event; ages in seconds, and the first event has gap 0."""
    dt = age if config.reading == "age" else -torch.diff(age, prepend=age[:, :1])
    # Padding after a history looks like a negative gap, and a log's clock may step back.
    tau = torch.log1p(dt.clamp(min=0) / config.t_scale)
    i = torch.arange(pairs, dtype=age.dtype, device=age.device)
    t = torch.arange(age.shape[1], dtype=age.dtype, device=age.device)
    angles = torch.zeros(*age.shape, pairs, dtype=age.dtype, device=age.device)
    if config.position:
        angles = angles + t[:, None] * config.base ** (-i / pairs)
    if config.time:
        angles = angles + tau[..., None] * config.time_base ** (-i / pairs)
    return angles


def rotate(
    x: Float[Tensor, "batch time heads dim"], angles: Float[Tensor, "batch time pairs"]
) -> Float[Tensor, "batch time heads dim"]:
    """Rotates the channel pairs ``(i, i + dim / 2)`` of every head."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos()[:, :, None, :], angles.sin()[:, :, None, :]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
