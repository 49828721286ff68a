"""From the fields of an event to its token.

    MaskNet(S) = MLP(S * MLP_mask(S))     Source: InterFormer (P)
    MLP(S)                                Source: Kunlun (r)
    tied:  ... + m^-1/2 sum_f e_f P_f     Source: O; f a field that shares a table with a context feature, P_f its map

S holds the embeddings of the event's fields, its dense fields and, if requested, (log(1 + age / 1 h) - 5.5) / 2 and
(log(1 + newer events) - 3) / 2 (O).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kunlun_jax.torch_reference.mlp import MLP


def unit_rank(mask: Bool[Tensor, "batch time"], dtype: torch.dtype) -> Float[Tensor, "batch time 1"]:
    """(log(1 + n) - 3) / 2 for the n newer events of each event."""
    place = torch.arange(mask.shape[1], device=mask.device)
    newer = (mask.sum(1, keepdim=True) - 1 - place).clamp(min=0)
    return ((torch.log1p(newer.to(dtype)) - 3) / 2)[..., None]


class EventInput(nn.Module):
    """Tokens of width `dim` for events with `fields` embeddings and `dense` numbers each.

    Args:
      fields, dense: how many an event has.
      embedding_dim: width of an embedding.
      dim: d_e.
      kind: "masknet" or "mlp".
      age: whether the age is an input.
      activation: of the MLPs.
      tied: (field, context feature) numbers that share a table.
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
        tied: tuple[tuple[int, int], ...],
    ):
        super().__init__()
        self.dim, self.tied = dim, tied
        inputs = fields * embedding_dim + dense + age
        self.age = age
        self.mask = MLP((inputs, dim, inputs), activation) if kind == "masknet" else None
        self.mlp = MLP((inputs, dim, dim), activation)

    def forward(
        self,
        fields: Float[Tensor, "batch time fields embedding"],
        dense: Float[Tensor, "batch time dense"],
        age: Float[Tensor, "batch time"],
        maps: Float[Tensor, "features embedding context"] | None,
    ) -> Float[Tensor, "batch time dim"]:
        """S_e^0; ages in seconds; `maps` of the context features, None where their tokens are the embeddings."""
        parts = [rearrange(fields, "batch time fields embedding -> batch time (fields embedding)"), dense]
        if self.age:
            parts.append((torch.log1p(age / 3600)[..., None] - 5.5) / 2)
        s = torch.cat(parts, dim=-1)
        tokens = self.mlp(s if self.mask is None else s * self.mask(s))
        for field, feature in self.tied:
            e = fields[:, :, field] if maps is None else fields[:, :, field] @ maps[feature]
            tokens = tokens + F.pad(e, (0, self.dim - e.shape[-1])) * len(self.tied) ** -0.5
        return tokens
