"""From the fields of an event to its token: MaskNet (InterFormer) or a two-layer MLP.

    MaskNet(S) = MLP_lce(S * MLP_mask(S))        Source: InterFormer (P)
    MLP(S)                                       Source: Kunlun (r)
    tied:      ... + m^-1/2 sum_f e_f P_f        Source: O

S are the embeddings of an event's fields side by side, its dense fields, and the logarithms of its age and of how many
events are newer, so that pooling, which ignores order, can tell old from new (O; `age_feature` and `rank_feature` in
the config). The tied path sends the m fields that share a table with a context feature through that feature's own map
P_f to its token, so an event and the candidate share coordinates from the first step.
"""

import functools
import operator

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from kunlun_jax.batch import Jagged
from kunlun_jax.nn.mlp import MLP

AGE_SCALE = 3600.0
"""Seconds that count as one in the logarithm of an event's age, as an input feature: an hour."""


def unit_age(age: Float[Array, " rows"]) -> Float[Array, " rows"]:
    """(log(1 + age / 1 h) - 5.5) / 2: -1 for a day and a half, 1 for two months, about 1.8 for a year."""
    return (jnp.log1p(age / AGE_SCALE) - 5.5) / 2.0


def unit_rank(events: Jagged, dtype) -> Float[Array, " rows"]:
    """(log(1 + n) - 3) / 2 for the n newer events of the same history: -1.5 for the newest, about 1.2 for n = 200."""
    ends = jnp.asarray(events.row_splits)[:-1] + jnp.asarray(events.lengths)
    ends = ends.at[events.example_ids()].get(mode="clip")
    newer = jnp.maximum(ends - 1 - jnp.arange(events.rows, dtype=jnp.int32), 0)
    return (jnp.log1p(newer.astype(dtype)) - 3.0) / 2.0


class EventInput(nnx.Module):
    """Event fields to event tokens of width `dim`.

    Args:
      fields: categorical fields of an event, each embedded in `embedding_dim` channels.
      dense: dense fields of an event, including its rank if that is an input.
      dim: width d_e of the token.
      kind: "masknet" or "mlp".
      age: whether the logarithm of the age is an input.
      tied: (field, context feature) pairs that share a table: numbers of the field, and of the feature among those
        that `kunlun_jax.nn.context.ContextTokens` embeds.
      mlp_start: initial scale of the last layer's kernel, relative to LeCun's.
    """

    def __init__(
        self,
        fields: int,
        dense: int,
        embedding_dim: int,
        dim: int,
        *,
        kind: str,
        age: bool,
        activation: str,
        tied: tuple[tuple[int, int], ...] = (),
        mlp_start: float = 1.0,
        dtype,
        rngs: nnx.Rngs,
    ):
        if kind not in ("masknet", "mlp"):
            raise ValueError(f"event_input is {kind!r}; use 'masknet' or 'mlp'")
        inputs = fields * embedding_dim + dense + age
        self.age = age
        self.dtype = dtype
        rest = {"activation": activation, "dtype": dtype, "rngs": rngs}
        # The mask starts around one: around zero it would leave nothing of the ids.
        self.mask = MLP((inputs, dim, inputs), last_bias=1.0, **rest) if kind == "masknet" else None
        self.mlp = MLP((inputs, dim, dim), last_scale=mlp_start, **rest)
        self.dim, self.tied, self.embedding_dim = dim, tied, embedding_dim

    def __call__(
        self,
        fields: Float[Array, "rows fields embedding"],
        dense: Float[Array, "rows dense"],
        age: Float[Array, " rows"],
        maps: Float[Array, "features embedding context"] | None = None,
    ) -> Float[Array, "rows dim"]:
        """Tokens of events: embeddings of their id fields, their dense fields, their ages in seconds.

        `maps` are those of the context features, None where their tokens are the embeddings themselves.
        """
        parts = [rearrange(fields, "rows fields embedding -> rows (fields embedding)"), dense]
        if self.age:
            parts.append(unit_age(age)[:, None])
        x = jnp.concatenate(parts, axis=-1).astype(self.dtype)
        if self.mask is not None:
            x = x * self.mask(x)
        return self.mlp(x) if not self.tied else self.mlp(x) + self.tied_path(fields.astype(self.dtype), maps)

    def tied_path(
        self, fields: Float[Array, "rows fields embedding"], maps: Float[Array, "features embedding context"] | None
    ) -> Float[Array, "rows dim"]:
        """m^-1/2 sum_f e_f P_f, cut or padded with zeros to `dim`."""
        if maps is None:
            total = functools.reduce(operator.add, (fields[:, field] for field, _ in self.tied))
        else:
            own = jnp.stack([maps[feature] for _, feature in self.tied]).astype(self.dtype)
            chosen = jnp.stack([fields[:, field] for field, _ in self.tied], axis=1)
            total = jnp.einsum("rfe,fed->rd", chosen, own[..., : self.dim])
        total = total[:, : self.dim] * len(self.tied) ** -0.5
        return jnp.pad(total, ((0, 0), (0, self.dim - total.shape[1])))

    def flops(self, context_dim: int | None = None) -> int:
        """Forward FLOPs per event; `context_dim` is the width of context tokens if the tied path has maps."""
        tied = 0 if context_dim is None else 2 * len(self.tied) * self.embedding_dim * min(context_dim, self.dim)
        return self.mlp.flops() + (self.mask.flops() if self.mask is not None else 0) + tied
