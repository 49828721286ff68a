"""PersonalizedFFN: a two-layer MLP on events whose weights the context makes, written as GDPA.

    K = w1(X_sum), V = w2(X_sum)                      token-axis map n_sum -> F, then a channel map (O)
    q' = LayerNorm(q);  o = Act(pre_scale q' K^T) V * post_scale + q';  out = RMSNorm(o) + q

Norms run over all heads * head_dim channels, without affine parameters, eps 1e-5. Source: Kunlun (R), the block and
its norms from Meta's published kernels (M).

PlainFFN is the same block with weights that all examples share, o = Act(q' W_1 + b_1) W_2 + b_2 + q': the ablation that
takes the context out (O: what the paper's own ablation used instead is not known).

With `layer_scale` either block is out = g * RMSNorm(o) + q, g learned: LayerScale, arXiv 2103.17239, here (O).
"""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float, Int

from kunlun_jax.batch import Jagged
from kunlun_jax.nn.init import LECUN, Linear, near_identity, normal, scaled
from kunlun_jax.nn.mlp import linear_flops
from pallas_kernels import gdpa_block
from pallas_kernels.activations import activation as activation_by_name
from pallas_kernels.operators.gdpa import shapes
from pallas_kernels.operators.gdpa.norms import layer_norm, rms_norm


class TokenToWeights(nnx.Module):
    """w(X_sum): a map over the token axis, n_sum -> F, then one over channels, d -> heads * head_dim."""

    def __init__(
        self,
        tokens: int,
        width: int,
        dim_in: int,
        dim_out: int,
        *,
        channel_init: Initializer = LECUN,
        free: float = 0.0,
        dtype,
        rngs: nnx.Rngs,
    ):
        self.token_map = Linear(tokens, width, use_bias=False, dtype=dtype, rngs=rngs)
        self.channel_map = Linear(dim_in, dim_out, kernel_init=channel_init, dtype=dtype, rngs=rngs)
        self.free = nnx.Param(free * normal(rngs.params(), (width, dim_out))) if free else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch width out"]:
        """The weights of each example."""
        mixed = self.token_map(rearrange(x, "batch tokens dim -> batch dim tokens"))
        w = self.channel_map(rearrange(mixed, "batch dim width -> batch width dim"))
        return w if self.free is None else w + self.free[...].astype(self.dtype)[None]

    def flops(self) -> int:
        """Forward FLOPs per example."""
        dim, width = self.channel_map.in_features, self.token_map.out_features
        return dim * linear_flops(self.token_map) + width * linear_flops(self.channel_map)


def new_gain(dim: int, start: float) -> nnx.Param | None:
    """LayerScale's g, `start` in every channel; None for 0, a block without it."""
    return nnx.Param(jnp.full(dim, start, jnp.float32)) if start else None


class PersonalizedFFN(nnx.Module):
    """The GDPA block of one event type.

    Args:
      tokens, context_dim: shape of X_sum.
      dim: d_e, divisible by `heads`.
      width: F, the personalized hidden width.
      pre_scale, post_scale: 1 / tau, before or after the activation.
      layer_scale: what the gain of RMSNorm(o) starts at; 0: no gain.
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
        aligned: bool = False,
        free_values: float = 0.0,
        values_start: float = 1.0,
        layer_scale: float = 0.0,
        implementation: str | None,
        dtype,
        rngs: nnx.Rngs,
    ):
        rest = {"dtype": dtype, "rngs": rngs}
        keys_init = near_identity(0.0) if aligned else LECUN
        self.keys = TokenToWeights(tokens, width, context_dim, dim, channel_init=keys_init, **rest)
        self.values = TokenToWeights(
            tokens, width, context_dim, dim, channel_init=scaled(values_start), free=free_values, **rest
        )
        self.gain = new_gain(dim, layer_scale)
        self.heads, self.dim, self.width = heads, dim, width
        self.activation, self.pre_scale, self.post_scale = activation, pre_scale, post_scale
        self.implementation = implementation

    def __call__(self, events: Jagged, x_sum: Float[Array, "batch tokens context"]) -> Float[Array, "rows dim"]:
        """The events after the block, each example's with weights from its own X_sum."""
        k, v = (
            rearrange(w(x_sum), "batch width (heads dim) -> batch width heads dim", heads=self.heads)
            for w in (self.keys, self.values)
        )
        out = gdpa_block(
            rearrange(events.values, "rows (heads dim) -> rows heads dim", heads=self.heads),
            k,
            v,
            events.row_splits,
            events.lengths,
            activation=self.activation,
            pre_scale=self.pre_scale,
            post_scale=self.post_scale,
            implementation=self.implementation,
        )
        out = rearrange(out, "rows heads dim -> rows (heads dim)")
        if self.gain is None:
            return out
        # The kernel adds q itself. Up to g = 1 this loses no more of a q longer than 1 to rounding than the sum does.
        return events.values + self.gain[...].astype(out.dtype)[None] * (out - events.values)

    def flops(self, lengths: Int[np.ndarray, " batch"]) -> int:
        """Forward FLOPs of a batch with these history lengths."""
        generate = self.keys.flops() + self.values.flops()
        attention = shapes.cost(lengths, keys=self.width, heads=self.heads, dim=self.dim // self.heads)
        return len(lengths) * generate + attention.forward_flops


class PlainFFN(nnx.Module):
    """The block of `PersonalizedFFN` with one set of weights for all examples.

    Args:
      dim: d_e.
      width: hidden width; F costs as many FLOPs per event as F personalized units, weight generation aside.
      activation: of `pallas_kernels.activations`.
      values_start: initial scale of W_2, relative to LeCun's.
      layer_scale: as in `PersonalizedFFN`.
    """

    def __init__(
        self,
        dim: int,
        *,
        width: int,
        activation: str,
        values_start: float = 1.0,
        layer_scale: float = 0.0,
        dtype,
        rngs: nnx.Rngs,
    ):
        rest = {"dtype": dtype, "rngs": rngs}
        self.hidden = Linear(dim, width, **rest)
        self.out = Linear(width, dim, kernel_init=scaled(values_start), **rest)
        self.gain = new_gain(dim, layer_scale)
        self.activation = activation

    def __call__(
        self, events: Jagged, x_sum: Float[Array, "batch tokens context"] | None = None
    ) -> Float[Array, "rows dim"]:
        """The events after the block; `x_sum` is not read."""
        # The norms expect an axis of heads besides the channels and run over both.
        normed = layer_norm(events.values[:, None, :])
        hidden = activation_by_name(self.activation).value(self.hidden(normed[:, 0, :]))
        change = rms_norm(self.out(hidden)[:, None, :] + normed)[:, 0, :]
        return events.values + (change if self.gain is None else self.gain[...].astype(change.dtype)[None] * change)

    def flops(self, lengths: Int[np.ndarray, " batch"]) -> int:
        """Forward FLOPs of a batch with these history lengths."""
        return int(lengths.sum()) * (linear_flops(self.hidden) + linear_flops(self.out))
