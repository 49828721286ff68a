"""OneTrans' block: a causal transformer over events and feature tokens in which each feature token has its own weights.

    Z  = X + W_o MHA(q, k, v),     q, k, v = W^{Q,K,V}_i RMSNorm(X)_i
    X' = Z + FFN(RMSNorm(Z)),      FFN(z)_i = W^2_i act(W^1_i z_i)
    W_i = W_S for every S-token (event),  W_{NS,j} for the NS-token (feature) j

The NS-tokens come after the S-tokens, so that each reads all events and the NS-tokens before it. Queries, and with them
Z and X', exist only for the newest S-tokens and all NS-tokens (the pyramid); keys and values exist for all.

Source: OneTrans, arXiv 2510.26104 (P), sections 3.3 and 3.4; maps have no biases (P: the equations have none). W_o,
which the paper leaves to "standard multi-head attention", is one for all tokens (r). Attention runs on
`window_attention` with a window open only to the older side. The operator takes as many queries as keys, so those of
the S-tokens that do not go on are zeros, and nobody reads their outputs: `flops` does not count them.
"""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float, Int

from kunlun_jax.batch import Jagged
from kunlun_jax.nn.attention import WHOLE_HISTORY
from kunlun_jax.nn.init import LECUN, Linear, near_identity, scaled
from kunlun_jax.nn.mlp import activation, linear_flops
from kunlun_jax.nn.sequence import append, last_rows, spread, tail, tail_as
from pallas_kernels import window_attention
from pallas_kernels.dispatch import accumulator


class MixedLinear(nnx.Module):
    """A linear map without bias that all events share, and a separate one for each of `tokens` feature tokens.

    Args:
      shared: whether there is a map for events.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        tokens: int,
        *,
        shared: bool = True,
        kernel_init: Initializer = LECUN,
        dtype,
        rngs: nnx.Rngs,
    ):
        rest = {"use_bias": False, "kernel_init": kernel_init, "dtype": dtype, "rngs": rngs}
        self.shared = Linear(dim_in, dim_out, **rest) if shared else None
        self.own = nnx.Param(kernel_init(rngs.params(), (tokens, dim_in, dim_out), jnp.float32))
        self.dtype = dtype

    def of_events(self, s: Float[Array, "rows in"]) -> Float[Array, "rows out"]:
        """Each event through the shared map; ValueError if there is none."""
        if self.shared is None:
            raise ValueError("shared is False, so there is no map for events; it must be True")
        return self.shared(s)

    def of_tokens(self, x: Float[Array, "batch tokens in"]) -> Float[Array, "batch tokens out"]:
        """Each token through its own map."""
        return jnp.einsum("bti,tio->bto", x.astype(self.dtype), self.own[...].astype(self.dtype))

    def flops(self, events: int, batch: int) -> int:
        """Forward FLOPs of a batch with this many events in total."""
        tokens, dim_in, dim_out = self.own.shape
        return 2 * dim_in * dim_out * (events + batch * tokens)


class MixedBlock(nnx.Module):
    """One layer over packed events and the feature tokens of each example.

    Args:
      dim: width of every token, divisible by `heads`.
      tokens: feature tokens (NS-tokens) of an example.
      hidden: width between the FFN's two maps.
      queries: how many of an example's newest events (S-tokens) go on; None: all. With 0, events get only keys and
        values.
      causal: whether a token reads only itself and those before it (P), or all (the paper's ablation).
      activation: of the FFN, a name in `kunlun_jax.nn.mlp.ACTIVATIONS`.
      start: initial scale of W_o and W^2, relative to LeCun's.
      aligned: whether queries and keys start near the identity, so that similar tokens find each other (O).
    """

    def __init__(
        self,
        dim: int,
        tokens: int,
        *,
        heads: int,
        hidden: int,
        queries: int | None,
        causal: bool,
        activation: str,
        start: float,
        aligned: bool,
        implementation: str | None,
        dtype,
        rngs: nnx.Rngs,
    ):
        rest = {"dtype": dtype, "rngs": rngs}
        goes_on = {"shared": queries != 0, **rest}
        norm = {"epsilon": 1e-6, "dtype": accumulator(jnp.dtype(dtype)), "rngs": rngs}
        self.norm, self.ffn_norm = nnx.RMSNorm(dim, **norm), nnx.RMSNorm(dim, **norm)
        look = {"kernel_init": near_identity(0.1) if aligned else LECUN}
        self.query = MixedLinear(dim, dim, tokens, **look, **goes_on)
        self.key = MixedLinear(dim, dim, tokens, **look, **rest)
        self.value = MixedLinear(dim, dim, tokens, **rest)
        self.out = Linear(dim, dim, use_bias=False, kernel_init=scaled(start), **rest)
        self.up = MixedLinear(dim, hidden, tokens, **goes_on)
        self.down = MixedLinear(hidden, dim, tokens, kernel_init=scaled(start), **goes_on)
        self.dim, self.tokens, self.heads, self.queries, self.causal = dim, tokens, heads, queries, causal
        self.activation, self.implementation = activation, implementation

    def __call__(
        self, events: Jagged, x: Float[Array, "batch tokens dim"]
    ) -> tuple[Jagged, Float[Array, "batch tokens dim"]]:
        """X' of the events that go on (none if `queries` is 0) and of the feature tokens."""
        kept = events if self.queries is None else tail(events, self.queries)
        from_events, from_tokens = self.attend(events, kept, x)
        x = x + self.out(from_tokens)
        x = x + self.feed_forward(self.up.of_tokens, self.down.of_tokens, x)
        if self.queries == 0:
            return kept, x
        s = kept.values + self.out(from_events)
        return kept.replace(s + self.feed_forward(self.up.of_events, self.down.of_events, s)), x

    def attend(
        self, events: Jagged, kept: Jagged, x: Float[Array, "batch tokens dim"]
    ) -> tuple[Float[Array, "rows dim"], Float[Array, "batch tokens dim"]]:
        """What the events `kept`, a tail of `events`, and the feature tokens read, before W_o."""
        s, x = self.norm(events.values), self.norm(x)
        sequence = append(events.replace(self.key.of_events(s)), self.key.of_tokens(x))
        k, v = sequence.values, append(events.replace(self.value.of_events(s)), self.value.of_tokens(x)).values
        if self.queries != 0:
            kept = kept.replace(self.query.of_events(s if self.queries is None else self.norm(kept.values)))
        last = append(kept, self.query.of_tokens(x))
        q = last.values if self.queries is None else spread(last, sequence)
        o = window_attention(
            rearrange(q, "rows (heads dim) -> rows heads dim", heads=self.heads),
            rearrange(k, "rows (heads dim) -> rows heads dim", heads=self.heads),
            rearrange(v, "rows (heads dim) -> rows heads dim", heads=self.heads),
            sequence.row_splits,
            sequence.lengths,
            window=(WHOLE_HISTORY, 0 if self.causal else WHOLE_HISTORY),
            implementation=self.implementation,
        )
        o = sequence.replace(rearrange(o, "rows heads dim -> rows (heads dim)"))
        return tail_as(o, kept, skip=self.tokens).values, last_rows(o, self.tokens)

    def feed_forward(self, up, down, z: Float[Array, "*rows dim"]) -> Float[Array, "*rows dim"]:
        """W^2 act(W^1 RMSNorm(z)) with the given maps."""
        return down(activation(self.activation)(up(self.ffn_norm(z))))

    def kept(self, lengths: Int[np.ndarray, " batch"]) -> Int[np.ndarray, " batch"]:
        """How many of these events go on."""
        return lengths if self.queries is None else np.minimum(lengths, self.queries)

    def flops(self, lengths: Int[np.ndarray, " batch"]) -> int:
        """Forward FLOPs of a batch with these history lengths: queries that go on, and pairs that the mask allows."""
        batch, kept, whole = len(lengths), self.kept(lengths), lengths + self.tokens
        come, go = int(lengths.sum()), int(kept.sum())
        flops = sum(w.flops(come, batch) for w in (self.key, self.value))
        flops += sum(w.flops(go, batch) for w in (self.query, self.up, self.down))
        flops += (go + batch * self.tokens) * linear_flops(self.out)
        # The query at position p of a sequence reads p + 1 tokens; at the first `left` positions none goes on.
        left = lengths - kept
        pairs = (whole * (whole + 1) - left * (left + 1)) // 2 if self.causal else (whole - left) * whole
        return flops + 4 * self.dim * int(pairs.sum())
