"""From the fields of an event to its token: MaskNet (InterFormer) or a two-layer MLP.

    MaskNet(S) = MLP_lce(S * MLP_mask(S))        Source: InterFormer (P)
    MLP(S)                                       Source: Kunlun (r)

S are the embeddings of an event's fields side by side, its dense fields, and the logarithm of its age, so that pooling,
which knows no order, can tell old from new (O; `age_feature` in the config).
"""

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from kunlun_jax.nn.mlp import MLP

AGE_SCALE = 3600.0
"""Seconds that count as one in the logarithm of an event's age, as an input feature: an hour."""


def log_age(age: Float[Array, " rows"]) -> Float[Array, " rows"]:
    """log(1 + age / 1 h), a number between 0 and about 9 for a year."""
    return jnp.log1p(age / AGE_SCALE)


class EventInput(nnx.Module):
    """Event fields to event tokens of width `dim`.

    Args:
      fields: categorical fields of an event, each embedded in `embedding_dim` channels.
      dense: dense fields of an event.
      dim: width d_e of the token.
      kind: "masknet" or "mlp".
      age: whether the logarithm of the age is an input.
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
        dtype,
        rngs: nnx.Rngs,
    ):
        if kind not in ("masknet", "mlp"):
            raise ValueError(f"event_input is {kind!r}; use 'masknet' or 'mlp'")
        inputs = fields * embedding_dim + dense + age
        self.age = age
        self.dtype = dtype
        self.mask = (
            MLP((inputs, dim, inputs), activation=activation, dtype=dtype, rngs=rngs) if kind == "masknet" else None
        )
        self.mlp = MLP((inputs, dim, dim), activation=activation, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        fields: Float[Array, "rows fields embedding"],
        dense: Float[Array, "rows dense"],
        age: Float[Array, " rows"],
    ) -> Float[Array, "rows dim"]:
        """Tokens of events: embeddings of their id fields, their dense fields, their ages in seconds."""
        parts = [rearrange(fields, "rows fields embedding -> rows (fields embedding)"), dense]
        if self.age:
            parts.append(log_age(age)[:, None])
        x = jnp.concatenate(parts, axis=-1).astype(self.dtype)
        if self.mask is not None:
            x = x * self.mask(x)
        return self.mlp(x)

    def flops(self) -> int:
        """Forward FLOPs per event."""
        return self.mlp.flops() + (self.mask.flops() if self.mask is not None else 0)
