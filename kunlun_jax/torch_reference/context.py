"""Context tokens X^1, and WeightGeneration, which condenses them to X_sum.

    X^1   = [W clip((x_dense - mean) / std) | a token per categorical feature | a mean token per multi-valued feature]
    X_sum = Z + MLP(Z),  Z = W X,  W in R^{n_sum x n};   with the gate: sigma(X_sum * MLP(X_sum)) on top

Source: InterFormer (P) for tokens and gate, Kunlun (r) for the MLP; its residual, standardized dense features and the
number of events of each type as further ones (O).
"""

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from kunlun_jax.data.dataset import FARTHEST, Moments
from kunlun_jax.data.schema import Schema
from kunlun_jax.torch_reference.mlp import MLP


class ContextTokens(nn.Module):
    """X^1 of the schema's context features, `tokens` of width `dim`.

    Args:
      schema: which features there are.
      embedding_dim: width of an embedding; if not `dim`, each feature has its own map to `dim`.
      dense_tokens: tokens that the dense features make together.
      moments: by which dense features are standardized and cut off at `FARTHEST`; None leaves them as they are.
      lengths: how many event types contribute their number of events as a dense feature.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, schema: Schema, embedding_dim: int, dim: int, *, dense_tokens: int, moments: Moments | None, lengths: int
    ):
        super().__init__()
        dense, embedded = len(schema.dense), len(schema.categorical) + len(schema.multi_valued)
        self.farthest = float("inf") if moments is None else FARTHEST
        moments = moments or Moments((0.0,) * dense, (1.0,) * dense)
        # float64, so that `.double()` has every digit; not saved, since they belong to the data and are not learned.
        self.register_buffer("mean", torch.tensor(moments.mean, dtype=torch.float64), persistent=False)
        self.register_buffer("std", torch.tensor(moments.std, dtype=torch.float64), persistent=False)
        self.dense = nn.Linear(dense + lengths, dense_tokens * dim) if dense + lengths else None
        project = embedding_dim != dim and embedded
        self.project = (
            nn.Parameter(torch.randn(embedded, embedding_dim, dim) * embedding_dim**-0.5) if project else None
        )
        self.dense_tokens = dense_tokens
        self.tokens = embedded + (dense_tokens if dense + lengths else 0)

    def forward(
        self,
        dense: Float[Tensor, "batch dense"],
        embedded: Float[Tensor, "batch features embedding"],
        lengths: Float[Tensor, "batch types"],
    ) -> Float[Tensor, "batch tokens dim"]:
        """X^1 of dense features, one embedding for each other feature, and the numbers of events."""
        x = embedded
        if self.project is not None:
            x = einsum(x, self.project, "batch features embedding, features embedding dim -> batch features dim")
        if self.dense is None:
            return x
        standardized = (dense - self.mean.to(dense.dtype)) / self.std.to(dense.dtype)
        standardized = standardized.clamp(-self.farthest, self.farthest)
        inputs = torch.cat([standardized, (torch.log1p(lengths) - 3) / 2], dim=1)
        tokens = rearrange(self.dense(inputs), "batch (tokens dim) -> batch tokens dim", tokens=self.dense_tokens)
        return torch.cat([tokens, x], dim=1) if x.shape[1] else tokens


class WeightGeneration(nn.Module):
    """X_sum: `tokens_in` context tokens to `tokens_out` summary tokens, with or without InterFormer's gate."""

    def __init__(self, tokens_in: int, tokens_out: int, dim: int, *, gate: bool, residual: bool, activation: str):
        super().__init__()
        self.residual = residual
        self.compress = nn.Linear(tokens_in, tokens_out, bias=False)
        self.mlp = MLP((dim, dim, dim), activation)
        self.gate = MLP((dim, dim), activation) if gate else None

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch summary dim"]:
        """X_sum."""
        z = self.compress(x.transpose(1, 2)).transpose(1, 2)
        z = z + self.mlp(z) if self.residual else self.mlp(z)
        return z if self.gate is None else torch.sigmoid(z * self.gate(z))
