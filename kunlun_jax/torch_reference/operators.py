"""The three operators as plain functions over padded sequences.

Every sequence is ``[batch, time, heads, dim]`` with a mask ``[batch, time]`` that is True where there is an event.
Padding may hold any finite numbers: results are zero there, and do not depend on them.
"""

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.01),
    "relu_squared": lambda x: F.relu(x) ** 2,
    "hardswish": F.hardswish,
    "identity": lambda x: x,
}


def gdpa(
    q: Float[Tensor, "batch time heads dim"],
    k: Float[Tensor, "batch keys heads dim"],
    v: Float[Tensor, "batch keys heads dim"],
    mask: Bool[Tensor, "batch time"],
    *,
    activation: str = "gelu",
    pre_scale: float = 1.0,
    post_scale: float = 1.0,
) -> Float[Tensor, "batch time heads dim"]:
    """``Act(pre_scale q k^T) v * post_scale``: softmax replaced by a pointwise function. Source: Kunlun (R, M)."""
    scores = pre_scale * einsum(q, k, "batch time heads dim, batch keys heads dim -> batch heads time keys")
    weights = ACTIVATIONS[activation](scores)
    o = post_scale * einsum(weights, v, "batch heads time keys, batch keys heads dim -> batch time heads dim")
    return o.masked_fill(~mask[:, :, None, None], 0)


def window_attention(
    q: Float[Tensor, "batch time heads dim"],
    k: Float[Tensor, "batch time heads dim"],
    v: Float[Tensor, "batch time heads dim"],
    mask: Bool[Tensor, "batch time"],
    *,
    window: tuple[int, int],
) -> Float[Tensor, "batch time heads dim"]:
    """``softmax_j(q_i k_j^T / sqrt(dim)) v_j`` over events with ``-left <= j - i <= right``. Source: Kunlun (R)."""
    left, right = window
    time = torch.arange(q.shape[1], device=q.device)
    offset = time[None, :] - time[:, None]
    near = (offset >= -left) & (offset <= right)
    scores = einsum(q, k, "batch time heads dim, batch keys heads dim -> batch heads time keys") * q.shape[-1] ** -0.5
    weights = masked_softmax(scores, near & mask[:, None, None, :])
    o = einsum(weights, v, "batch heads time keys, batch keys heads dim -> batch time heads dim")
    return o.masked_fill(~mask[:, :, None, None], 0)


def seed_attention(
    q: Float[Tensor, "seeds heads dim"],
    k: Float[Tensor, "batch time heads dim"],
    v: Float[Tensor, "batch time heads dim"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch seeds heads dim"]:
    """``softmax(q k^T / sqrt(dim)) v`` over the events of each example; zeros where it has none. Source: Kunlun (R)."""
    scores = einsum(q, k, "seeds heads dim, batch time heads dim -> batch heads seeds time") * q.shape[-1] ** -0.5
    weights = masked_softmax(scores, mask[:, None, None, :])
    return einsum(weights, v, "batch heads seeds time, batch time heads dim -> batch seeds heads dim")


def masked_softmax(scores: Float[Tensor, "... keys"], mask: Bool[Tensor, "... keys"]) -> Float[Tensor, "... keys"]:
    """Softmax over the keys where `mask` is True; zeros, with gradient zero, where it is nowhere True."""
    # The lowest number, not -inf: a row of only -inf would make NaNs, which no later mask removes from gradients.
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
    return weights.masked_fill(~mask, 0)
