"""Pooling a history of any length into a fixed number of tokens: HSP, and PMA, which it replaces.

    PMA:  H = MHA(Q_learned, S, S)                                                   InterFormer (P)
    HSP:  H_seed = MHA(Norm(E_seed), S, S),  more seeds than output tokens           Kunlun (R, sizes r)
          H = sum_{i=1..k} Z_i^T H_seed W_i                                          SumKronLinear (R)
    without SumKronLinear:  H = Z^T H_seed                                           as its ablation (O)

    ranks: keys W_k S_t + r rank_t in either, rank_t from the number of newer events     ours (O)

    mean: H = 1/T sum_t S_t,  one token                                              DLRM and others (P)

For a user with no events the attention and the mean are zero, so H is defined.
"""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from kunlun_jax.batch import Jagged
from kunlun_jax.nn.context import mean_by_example
from kunlun_jax.nn.event_input import unit_rank
from kunlun_jax.nn.init import LECUN, Linear, near_identity, normal, normal_of
from kunlun_jax.nn.mlp import linear_flops
from pallas_kernels import seed_attention
from pallas_kernels.dispatch import accumulator
from pallas_kernels.operators.seed_attention import shapes


class SeedAttention(nnx.Module):
    """MHA(seeds, S, S) with learned seeds that all examples share.

    Args:
      seeds: number of learned queries.
      dim: d_e, divisible by `heads`.
      norm_seeds: whether the seeds go through a LayerNorm first (HSP does, PMA does not).
      aligned: whether values and output start near the identity (O).
      counts: whether half of the heads (a single head: that one) are scaled by half the logarithm of one plus the
        history's length: a softmax knows shares, not counts (O).
      ranks: whether a learned multiple of the number of newer events (`unit_rank`) is added to the keys, so that each
        seed has its own preference for old or new events from the start (O).
    """

    def __init__(
        self,
        seeds: int,
        dim: int,
        *,
        heads: int,
        norm_seeds: bool,
        aligned: bool = False,
        counts: bool = False,
        ranks: bool = False,
        implementation: str | None,
        dtype,
        rngs: nnx.Rngs,
    ):
        self.seeds = nnx.Param(normal(rngs.params(), (seeds, dim), jnp.float32))
        norm = {"epsilon": 1e-5, "dtype": accumulator(jnp.dtype(dtype)), "rngs": rngs}
        self.norm = nnx.LayerNorm(dim, **norm) if norm_seeds else None
        self.query = Linear(dim, dim, dtype=dtype, rngs=rngs)
        out_init = near_identity(0.1) if aligned else LECUN
        self.key_value = Linear(dim, 2 * dim, dtype=dtype, rngs=rngs)
        if aligned:
            kernel = self.key_value.kernel[...]
            self.key_value.kernel[...] = kernel.at[:, dim:].set(
                0.1 * kernel[:, dim:] + jnp.eye(dim, dtype=kernel.dtype)
            )
        self.out = Linear(dim, dim, kernel_init=out_init, dtype=dtype, rngs=rngs)
        # With 2, one seed in six starts with over half of its weight on the newest 8 of 200 events (LOG.md).
        self.rank_keys = nnx.Param(2.0 * normal(rngs.params(), (dim,), jnp.float32)) if ranks else None
        self.counts = counts
        self.heads, self.dim, self.dtype = heads, dim, dtype
        self.tokens_out = seeds
        self.implementation = implementation

    def queries_keys_values(self, events: Jagged):
        """Queries ``[seeds, heads, head_dim]``, keys and values ``[rows, heads, head_dim]``."""
        seeds = self.seeds[...] if self.norm is None else self.norm(self.seeds[...])
        q = rearrange(self.query(seeds), "seeds (heads dim) -> seeds heads dim", heads=self.heads)
        # Split before separating the heads: each part is then a slice, where a leading axis would need a transpose.
        k, v = jnp.split(self.key_value(events.values), 2, axis=-1)
        if self.rank_keys is not None:
            rank = unit_rank(events, self.rank_keys.dtype)
            k = k + (rank[:, None] * self.rank_keys[...][None]).astype(self.dtype)
        k, v = (rearrange(x, "rows (heads dim) -> rows heads dim", heads=self.heads) for x in (k, v))
        return q, k, v

    def __call__(self, events: Jagged) -> Float[Array, "batch seeds dim"]:
        """H_seed, or PMA's H; without events it is the bias of the last map."""
        q, k, v = self.queries_keys_values(events)
        o = seed_attention(q, k, v, events.row_splits, events.lengths, implementation=self.implementation)
        if self.counts:
            # In float32 or better: bfloat16 has no number between 256 and 258.
            gain = 0.5 * jnp.log1p(events.lengths.astype(accumulator(o.dtype)))[:, None, None, None].astype(o.dtype)
            half = self.heads // 2
            o = jnp.concatenate([o[:, :, :half], gain * o[:, :, half:]], axis=2)
        return self.out(rearrange(o, "batch seeds heads dim -> batch seeds (heads dim)"))

    def flops(self, lengths: Int[np.ndarray, " batch"]) -> int:
        """Forward FLOPs of a batch with these history lengths; the queries are made once per batch."""
        seeds = self.seeds.shape[0]
        rows = int(lengths.sum()) * linear_flops(self.key_value)
        per_example = seeds * linear_flops(self.out)
        attention = shapes.cost(lengths, seeds=seeds, heads=self.heads, dim=self.dim // self.heads)
        return seeds * linear_flops(self.query) + rows + len(lengths) * per_example + attention.forward_flops


class SumKronLinear(nnx.Module):
    """Y = sum_i Z_i^T H W_i: a map over seeds and channels as a sum of `rank` Kronecker products.

    Args:
      seeds, tokens: rows before and after.
      dim: channels, kept.
      rank: k, the number of products.
    """

    def __init__(self, seeds: int, tokens: int, dim: int, *, rank: int, aligned: bool = False, dtype, rngs: nnx.Rngs):
        token_init = normal_of((1.0 / (seeds * rank)) ** 0.5)
        channel_init = near_identity(0.3) if aligned else normal_of((1.0 / dim) ** 0.5)
        self.token_maps = nnx.Param(token_init(rngs.params(), (rank, seeds, tokens), jnp.float32))
        self.channel_maps = nnx.Param(channel_init(rngs.params(), (rank, dim, dim), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "batch seeds dim"]) -> Float[Array, "batch tokens dim"]:
        """Y of each example."""
        z, w = self.token_maps[...].astype(self.dtype), self.channel_maps[...].astype(self.dtype)
        # Tokens first: there are fewer of them than seeds, so the channel maps, the expensive half, run on fewer rows.
        mixed = jnp.einsum("bsd,kst->btkd", x, z)
        return jnp.einsum("btkd,kde->bte", mixed, w)

    def flops(self) -> int:
        """Forward FLOPs per example."""
        rank, seeds, tokens = self.token_maps.shape
        dim = self.channel_maps.shape[-1]
        return 2 * rank * tokens * dim * (seeds + dim)


class TokenLinear(nnx.Module):
    """Y = Z^T H: a map over seeds only, the same for every channel.

    What is left of SumKronLinear without its products, when the number of tokens has to stay; what the paper put in
    its place is not known (O).

    Args:
      seeds, tokens: rows before and after.
      dim: channels, kept.
    """

    def __init__(self, seeds: int, tokens: int, dim: int, *, dtype, rngs: nnx.Rngs):
        self.token_map = Linear(seeds, tokens, use_bias=False, dtype=dtype, rngs=rngs)
        self.dim = dim

    def __call__(self, x: Float[Array, "batch seeds dim"]) -> Float[Array, "batch tokens dim"]:
        """Y of each example."""
        y = self.token_map(rearrange(x, "batch seeds dim -> batch dim seeds"))
        return rearrange(y, "batch dim tokens -> batch tokens dim")

    def flops(self) -> int:
        """Forward FLOPs per example."""
        return self.dim * linear_flops(self.token_map)


class HSP(nnx.Module):
    """Hierarchical seed pooling: seeds attend to the events, SumKronLinear condenses them to `tokens`.

    Args:
      seeds, tokens: n_seeds and n_tokens.
      dim: d_e, divisible by `heads`.
      rank: k, products in SumKronLinear; None puts `TokenLinear` in its place.
    """

    def __init__(
        self,
        seeds: int,
        tokens: int,
        dim: int,
        *,
        heads: int,
        rank: int | None,
        aligned: bool = False,
        implementation: str | None,
        dtype,
        rngs: nnx.Rngs,
        **of_attention,
    ):
        rest = {"dtype": dtype, "rngs": rngs}
        self.attention = SeedAttention(
            seeds,
            dim,
            heads=heads,
            norm_seeds=True,
            aligned=aligned,
            implementation=implementation,
            **of_attention,
            **rest,
        )
        self.tokens_out = tokens
        self.condense = (
            TokenLinear(seeds, tokens, dim, **rest)
            if rank is None
            else SumKronLinear(seeds, tokens, dim, rank=rank, aligned=aligned, **rest)
        )

    def __call__(self, events: Jagged) -> Float[Array, "batch tokens dim"]:
        """H of each history."""
        return self.condense(self.attention(events))

    def flops(self, lengths: Int[np.ndarray, " batch"]) -> int:
        """Forward FLOPs of a batch with these history lengths."""
        return self.attention.flops(lengths) + len(lengths) * self.condense.flops()


class MeanPooling(nnx.Module):
    """The mean of a history's events as one token; it has no parameters."""

    tokens_out = 1

    def __call__(self, events: Jagged) -> Float[Array, "batch 1 dim"]:
        """H of each history, zeros where it has no events."""
        return mean_by_example(events, events.values)[:, None, :]

    def flops(self, lengths: Int[np.ndarray, " batch"]) -> int:
        """Zero: a mean is not a matrix product."""
        return 0


def make_pooling(kind: str, seeds: int, tokens: int, dim: int, *, heads: int, rank: int, **rest) -> nnx.Module:
    """HSP, or an ablation of it: "seeds" has no SumKronLinear, "pma" has `tokens` queries and nothing after them.

    Raises:
      ValueError: `kind` is none of these.
    """
    if kind in ("hsp", "seeds"):
        return HSP(seeds, tokens, dim, heads=heads, rank=rank if kind == "hsp" else None, **rest)
    if kind == "pma":
        return SeedAttention(tokens, dim, heads=heads, norm_seeds=False, **rest)
    raise ValueError(f"pooling is {kind!r}; use 'hsp', 'seeds' or 'pma'")
