"""HSTU's block: attention without softmax, gated by a projection of its input.

    U, V, Q, K = split(SiLU(LN(X) W))
    A  = SiLU(Q K^T + rab_pos + rab_time) / n, causal
    X' = X + W_o Dropout(U * LN(A V))

Source: HSTU, arXiv 2402.17152 (P). Without the biases and the mask (`biased=False`, an ablation of ours, O) A V is
`gdpa` of a sequence with itself and runs on its kernel; with them it is `nn.causal_pointwise`, plain XLA.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from kunlun_jax.batch import Jagged
from kunlun_jax.nn.causal_pointwise import causal_pointwise
from kunlun_jax.nn.init import LECUN, Linear, near_identity, scaled
from kunlun_jax.nn.mlp import linear_flops
from pallas_kernels import gdpa
from pallas_kernels.dispatch import accumulator
from pallas_kernels.operators.gdpa import shapes as gdpa_shapes
from pallas_kernels.operators.window_attention import shapes as window_shapes


class HSTUBlock(nnx.Module):
    """One layer over packed sequences.

    Args:
      dim: width of a row, and of each of U, V, Q and K; divisible by `heads`.
      n: divisor of the sum over keys, the length of the longest sequence.
      biased: whether attention is causal and has the two biases.
      positions, buckets: how many relative positions and buckets of time gaps have their own bias.
      dropout: rate.
      start: initial scale of W_o, relative to LeCun's.
      aligned: whether U, V, Q and K start near the identity (O).
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        n: float,
        biased: bool,
        positions: int,
        buckets: int,
        dropout: float,
        start: float = 1.0,
        aligned: bool = False,
        implementation: str | None,
        dtype,
        rngs: nnx.Rngs,
    ):
        norm = {"epsilon": 1e-5, "dtype": accumulator(jnp.dtype(dtype)), "rngs": rngs}
        self.norm, self.out_norm = nnx.LayerNorm(dim, **norm), nnx.LayerNorm(dim, **norm)
        look = near_identity(0.1, maps=4) if aligned else LECUN
        self.uvqk = Linear(dim, 4 * dim, kernel_init=look, dtype=dtype, rngs=rngs)
        self.out = Linear(dim, dim, kernel_init=scaled(start), dtype=dtype, rngs=rngs)
        self.position_bias = nnx.Param(jnp.zeros(positions, jnp.float32)) if biased else None
        self.time_bias = nnx.Param(jnp.zeros(buckets, jnp.float32)) if biased else None
        self.dropout = nnx.Dropout(dropout)
        self.heads, self.dim, self.n, self.dtype, self.implementation = heads, dim, n, dtype, implementation

    def __call__(
        self, events: Jagged, age: Float[Array, " rows"], dropout: nnx.Rngs | None = None
    ) -> Float[Array, "rows dim"]:
        """X' of the rows, whose ages are in seconds; dropout acts only where `dropout` is given."""
        u, v, q, k = jnp.split(jax.nn.silu(self.uvqk(self.norm(events.values))), 4, axis=-1)
        v, q, k = (rearrange(x, "rows (heads dim) -> rows heads dim", heads=self.heads) for x in (v, q, k))
        if self.position_bias is not None and self.time_bias is not None:
            biases = self.position_bias[...], self.time_bias[...]
            o = causal_pointwise(q, k, v, age, *biases, events.row_splits, events.lengths, scale=1 / self.n)
        else:
            options = {"activation": "silu", "post_scale": 1 / self.n, "implementation": self.implementation}
            o = gdpa(q, k, v, events.row_splits, events.lengths, **options)
        gated = u * self.out_norm(rearrange(o, "rows heads dim -> rows (heads dim)")).astype(self.dtype)
        return events.values + self.out(self.dropout(gated, deterministic=dropout is None, rngs=dropout))

    def flops(self, lengths: Int[np.ndarray, " batch"]) -> int:
        """Forward FLOPs of a batch of sequences of these lengths; causal pairs of rows only, not masked ones."""
        projections = int(lengths.sum()) * (linear_flops(self.uvqk) + linear_flops(self.out))
        sizes = {"heads": self.heads, "dim": self.dim // self.heads}
        if self.position_bias is None:
            return projections + gdpa_shapes.cost(lengths, keys=None, **sizes).forward_flops
        longest = int(lengths.max(initial=0))
        return projections + window_shapes.cost(lengths, window=(longest, 0), **sizes).forward_flops
