"""PersonalizedFFN: a two-layer MLP on events whose weights come from the context, as generalized dot-product attention.

    K = w1(X_sum), V = w2(X_sum)                      token-axis map n_sum -> F, then a channel map (O)
    q' = LayerNorm(q);  o = Act(pre_scale q' K^T) V * post_scale + q';  out = RMSNorm(o) + q

Norms over all heads * head_dim channels, eps 1e-5, no affine parameters but a weight of RMSNorm as an option (O).
Source: Kunlun (R), block and norms (M).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kunlun_jax.torch_reference.operators import ACTIVATIONS, gdpa

EPSILON = 1e-5


class TokenToWeights(nn.Module):
    """w(X_sum): ``[tokens, dim_in] -> [width, dim_out]``, first along tokens, then along channels."""

    def __init__(self, tokens: int, width: int, dim_in: int, dim_out: int, *, free: bool = False):
        super().__init__()
        self.free = nn.Parameter(torch.randn(width, dim_out)) if free else None
        self.token_map = nn.Linear(tokens, width, bias=False)
        self.channel_map = nn.Linear(dim_in, dim_out)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch width out"]:
        """The weights of each example."""
        w = self.channel_map(self.token_map(x.transpose(1, 2)).transpose(1, 2))
        return w if self.free is None else w + self.free


class PersonalizedFFN(nn.Module):
    """The block of one event type.

    Args:
      tokens, context_dim: shape of X_sum.
      dim: d_e.
      heads, width: H and F.
      activation: of `operators.ACTIVATIONS`.
      pre_scale, post_scale: factors before and after the activation.
      layer_scale: whether RMSNorm has a weight.
    """

    def __init__(
        self,
        tokens: int,
        context_dim: int,
        dim: int,
        *,
        heads: int,
        width: int,
        activation: str,
        pre_scale: float,
        post_scale: float,
        free_values: bool,
        layer_scale: bool,
    ):
        super().__init__()
        self.keys = TokenToWeights(tokens, width, context_dim, dim)
        self.values = TokenToWeights(tokens, width, context_dim, dim, free=free_values)
        self.gain = nn.Parameter(torch.ones(dim)) if layer_scale else None
        self.heads = heads
        self.gdpa = {"activation": activation, "pre_scale": pre_scale, "post_scale": post_scale}

    def forward(
        self,
        events: Float[Tensor, "batch time dim"],
        x_sum: Float[Tensor, "batch tokens context"],
        mask: Bool[Tensor, "batch time"],
    ) -> Float[Tensor, "batch time dim"]:
        """The events after the block."""
        normed = F.layer_norm(events, events.shape[-1:], eps=EPSILON)
        q, k, v = (
            rearrange(x, "batch rows (heads dim) -> batch rows heads dim", heads=self.heads)
            for x in (normed, self.keys(x_sum), self.values(x_sum))
        )
        o = rearrange(gdpa(q, k, v, mask, **self.gdpa), "batch time heads dim -> batch time (heads dim)") + normed
        return F.rms_norm(o, o.shape[-1:], self.gain, eps=EPSILON) + events


class PlainFFN(nn.Module):
    """The block with weights that all examples share: o = Act(q' W_1 + b_1) W_2 + b_2 + q' (O)."""

    def __init__(self, dim: int, *, width: int, activation: str, layer_scale: bool):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim)) if layer_scale else None
        self.hidden, self.out = nn.Linear(dim, width), nn.Linear(width, dim)
        self.activation = activation

    def forward(
        self, events: Float[Tensor, "batch time dim"], x_sum: Tensor | None, mask: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "batch time dim"]:
        """The events after the block; neither context nor mask is read."""
        normed = F.layer_norm(events, events.shape[-1:], eps=EPSILON)
        o = self.out(ACTIVATIONS[self.activation](self.hidden(normed))) + normed
        return F.rms_norm(o, o.shape[-1:], self.gain, eps=EPSILON) + events
