"""From the fields of an event to its token.

    MaskNet(S) = MLP(S * MLP_mask(S))     Source: InterFormer (P)
    MLP(S)                                Source: Kunlun (r)

S holds the embeddings of the event's fields, its dense fields and, if asked for, log(1 + age / 1 h) (O).
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from kunlun_jax.torch_reference.mlp import MLP


class EventInput(nn.Module):
    """Tokens of width `dim` of events with `fields` embeddings and `dense` numbers each.

    Args:
      fields, dense: how many an event has.
      embedding_dim: width of an embedding.
      dim: d_e.
      kind: "masknet" or "mlp".
      age: whether the age is an input.
      activation: of the MLPs.
    """

    def __init__(self, fields: int, dense: int, embedding_dim: int, dim: int, *, kind: str, age: bool, activation: str):
        super().__init__()
        inputs = fields * embedding_dim + dense + age
        self.age = age
        self.mask = MLP((inputs, dim, inputs), activation) if kind == "masknet" else None
        self.mlp = MLP((inputs, dim, dim), activation)

    def forward(
        self,
        fields: Float[Tensor, "batch time fields embedding"],
        dense: Float[Tensor, "batch time dense"],
        age: Float[Tensor, "batch time"],
    ) -> Float[Tensor, "batch time dim"]:
        """S_e^0; ages in seconds."""
        parts = [rearrange(fields, "batch time fields embedding -> batch time (fields embedding)"), dense]
        if self.age:
            parts.append(torch.log1p(age / 3600)[..., None])
        s = torch.cat(parts, dim=-1)
        return self.mlp(s if self.mask is None else s * self.mask(s))
