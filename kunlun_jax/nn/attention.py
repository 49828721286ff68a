"""WindowAttention: each event attends to its neighbours in the same history.

    S' = S + W_o softmax(R q_t . R k_{t-w..t+w} / sqrt(d_h)) v,   q, k, v = W Norm(S),   R = ROTE

|i - j| <= w inclusive, both directions, never across two examples. Source: Kunlun (R); pre-norm, which can be left out,
and residual (O).
"""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from kunlun_jax.batch import Jagged
from kunlun_jax.nn.init import LECUN, Linear, near_identity
from kunlun_jax.nn.mlp import linear_flops
from kunlun_jax.nn.rotary import RoteConfig, event_times, rotate
from pallas_kernels import window_attention
from pallas_kernels.dispatch import accumulator
from pallas_kernels.operators.window_attention import shapes

WHOLE_HISTORY = 1 << 20
"""A half window longer than any history: full attention."""


class WindowAttention(nnx.Module):
    """Sliding-window self-attention over the events of one type.

    Args:
      dim: d_e, divisible by `heads`; the head width must be even for ROTE.
      window: half window w, in events.
      aligned: whether queries, keys, values and output start near the identity (O).
      norm: whether events go through a LayerNorm first (O).

    Raises:
      ValueError: `dim` does not split into heads of even width.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        window: int,
        rote: RoteConfig,
        aligned: bool = False,
        norm: bool = True,
        implementation: str | None,
        dtype,
        rngs: nnx.Rngs,
    ):
        if dim % (2 * heads):
            raise ValueError(
                f"dim is {dim} and heads {heads}; ROTE rotates pairs of channels, so dim / heads must be even"
            )
        # Norms compute in float32 even where the rest is bfloat16.
        self.norm = nnx.LayerNorm(dim, epsilon=1e-5, dtype=accumulator(jnp.dtype(dtype)), rngs=rngs) if norm else None
        qkv_init, out_init = (near_identity(0.1, maps=3), near_identity(0.1)) if aligned else (LECUN, LECUN)
        self.qkv = Linear(dim, 3 * dim, kernel_init=qkv_init, dtype=dtype, rngs=rngs)
        self.out = Linear(dim, dim, kernel_init=out_init, dtype=dtype, rngs=rngs)
        self.heads, self.dim, self.window, self.rote = heads, dim, window, rote
        self.implementation = implementation

    def queries_keys_values(self, events: Jagged, age: Float[Array, " rows"]):
        """Rotated queries and keys, and values, each ``[rows, heads, head_dim]``."""
        normed = events.values if self.norm is None else self.norm(events.values)
        qk, v = jnp.split(self.qkv(normed), [2 * self.dim], axis=-1)
        positions = events.positions()
        tau = event_times(age, positions, self.rote)
        # Queries and keys are rotated alike, as the heads of one array.
        qk, v = (rearrange(x, "rows (heads dim) -> rows heads dim", dim=self.dim // self.heads) for x in (qk, v))
        q, k = jnp.split(rotate(qk, positions, tau, self.rote), 2, axis=1)
        return q, k, v

    def __call__(self, events: Jagged, age: Float[Array, " rows"]) -> Float[Array, "rows dim"]:
        """S' of the events, whose ages are in seconds; rows that hold no event get finite values."""
        q, k, v = self.queries_keys_values(events, age)
        o = window_attention(
            q,
            k,
            v,
            events.row_splits,
            events.lengths,
            window=(self.window, self.window),
            implementation=self.implementation,
        )
        return events.values + self.out(rearrange(o, "rows heads dim -> rows (heads dim)"))

    def flops(self, lengths: Int[np.ndarray, " batch"]) -> int:
        """Forward FLOPs of a batch with these history lengths."""
        projections = int(lengths.sum()) * (linear_flops(self.qkv) + linear_flops(self.out))
        window = (self.window, self.window)
        attention = shapes.cost(lengths, window=window, heads=self.heads, dim=self.dim // self.heads)
        return projections + attention.forward_flops
