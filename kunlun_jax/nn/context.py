"""Context tokens X^1, and WeightGeneration, which condenses them to the summary that personalizes the FFN.

    X^1   = [W clip((x_dense - mean) / std) | a token per categorical feature | a mean token per multi-valued feature]
    X_sum = Z + MLP(Z),  Z = W X,  W in R^{n_sum x n};   with the gate: sigma(X_sum * MLP(X_sum)) on top

Source: InterFormer (P) for tokens and gate, Kunlun (r) for the MLP on channels; its residual, standardized dense
features and the number of events of each type as further ones are ours (O).
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from kunlun_jax.batch import Batch
from kunlun_jax.data.dataset import FARTHEST, Moments
from kunlun_jax.data.schema import Schema
from kunlun_jax.nn.embedding import Embedded
from kunlun_jax.nn.init import LECUN, Linear
from kunlun_jax.nn.mlp import MLP, linear_flops
from pallas_kernels.jagged import zero_padding


class ContextTokens(nnx.Module):
    """The non-sequence features of a batch as tokens ``[batch, tokens, dim]``.

    Args:
      schema: which features there are.
      embedding_dim: width of the tables; if not `dim`, each feature has its own linear map to `dim`.
      dense_tokens: tokens that the dense features make together (InterFormer: one).
      dense_moments: mean and standard deviation of each dense feature, by which it is standardized, and cut off at
        `FARTHEST` deviations; None leaves features as they are.
      lengths: event types whose number of events is a dense feature: softmax pooling knows shares, not counts.
    """

    def __init__(
        self,
        schema: Schema,
        embedding_dim: int,
        dim: int,
        *,
        dense_tokens: int,
        dense_moments: Moments | None = None,
        lengths: tuple[str, ...] = (),
        dtype,
        rngs: nnx.Rngs,
    ):
        dense = len(schema.dense)
        self.lengths = lengths
        self.farthest = np.inf if dense_moments is None else FARTHEST
        self.moments = dense_moments or Moments((0.0,) * dense, (1.0,) * dense)
        if not len(self.moments.mean) == len(self.moments.std) == dense or not all(s > 0 for s in self.moments.std):
            raise ValueError(
                f"dense_moments is {dense_moments}; it must hold a mean and a positive std for each of {dense} features"
            )
        self.embedded = len(schema.categorical) + len(schema.multi_valued)
        inputs = dense + len(lengths)
        self.dense_tokens = dense_tokens if inputs else 0
        self.tokens = self.embedded + self.dense_tokens
        if not self.tokens:
            raise ValueError(f"schema {schema.name!r} has no context feature; it needs at least one")
        self.multi_valued = tuple(f.name for f in schema.multi_valued)
        self.dense = Linear(inputs, dense_tokens * dim, dtype=dtype, rngs=rngs) if inputs else None
        init = LECUN
        maps = (self.embedded, embedding_dim, dim)
        project = embedding_dim != dim and self.embedded
        self.project = nnx.Param(init(rngs.params(), maps, jnp.float32)) if project else None
        self.dtype = dtype

    def __call__(self, batch: Batch, embedded: Embedded) -> Float[Array, "batch tokens dim"]:
        """X^1 in the dtype of the computation: dense tokens, then categorical, then multi-valued features."""
        pooled = [mean_by_example(batch.multi_valued[name], embedded.multi_valued[name]) for name in self.multi_valued]
        x = jnp.concatenate([embedded.categorical, *(p[:, None, :] for p in pooled)], axis=1).astype(self.dtype)
        if self.project is not None:
            x = jnp.einsum("bne,ned->bnd", x, self.project[...].astype(self.dtype))
        if self.dense is None:
            return x
        # In the batch's float32: bfloat16 has only 8 bits for a feature of mean 1000 and deviation 1.
        mean, std = (np.asarray([x], batch.dense.dtype) for x in (self.moments.mean, self.moments.std))
        counts = [unit_length(batch.events[name].lengths, batch.dense.dtype)[:, None] for name in self.lengths]
        standardized = jnp.clip((batch.dense - mean) / std, -self.farthest, self.farthest)
        dense = self.dense(jnp.concatenate([standardized, *counts], axis=1).astype(self.dtype))
        dense = rearrange(dense, "batch (tokens dim) -> batch tokens dim", tokens=self.dense_tokens)
        return jnp.concatenate([dense, x], axis=1) if self.embedded else dense

    def flops(self) -> int:
        """Forward FLOPs per example; a mean over a multi-valued feature is not counted."""
        project = 2 * self.project.size if self.project is not None else 0
        return project + (linear_flops(self.dense) if self.dense is not None else 0)


def unit_length(lengths: Int[Array | np.ndarray, " batch"], dtype) -> Float[Array, " batch"]:
    """(log(1 + n) - 3) / 2 for histories of n events: about -1.5 for none and 2 for a thousand."""
    return (jnp.log1p(jnp.asarray(lengths, dtype)) - 3.0) / 2.0


def mean_by_example(feature, values: Float[Array, "rows dim"]) -> Float[Array, "batch dim"]:
    """Mean of each example's rows; zeros where it has none."""
    batch = feature.lengths.shape[0]
    sums = jax.ops.segment_sum(zero_padding(values, feature.mask()), feature.example_ids(), num_segments=batch)
    return sums / jnp.maximum(feature.lengths, 1).astype(values.dtype)[:, None]


class WeightGeneration(nnx.Module):
    """X_sum: `tokens_out` tokens that summarize all context tokens.

    Args:
      tokens_in, tokens_out: n and n_sum.
      gate: whether InterFormer's gate sigma(Z * MLP(Z)) follows.
      residual: whether Z is added to MLP(Z).
    """

    def __init__(
        self,
        tokens_in: int,
        tokens_out: int,
        dim: int,
        *,
        gate: bool,
        residual: bool = False,
        activation: str,
        dtype,
        rngs: nnx.Rngs,
    ):
        self.residual = residual
        self.compress = Linear(tokens_in, tokens_out, use_bias=False, dtype=dtype, rngs=rngs)
        self.mlp = MLP((dim, dim, dim), activation=activation, dtype=dtype, rngs=rngs)
        self.gate = MLP((dim, dim), dtype=dtype, rngs=rngs) if gate else None

    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch summary dim"]:
        """X_sum of the context tokens."""
        z = self.compress(rearrange(x, "batch tokens dim -> batch dim tokens"))
        z = rearrange(z, "batch dim summary -> batch summary dim")
        z = z + self.mlp(z) if self.residual else self.mlp(z)
        return z if self.gate is None else jax.nn.sigmoid(z * self.gate(z))

    def flops(self) -> int:
        """Forward FLOPs per example."""
        dim, tokens = self.mlp.layers[0].in_features, self.compress.out_features
        per_token = self.mlp.flops() + (self.gate.flops() if self.gate is not None else 0)
        return dim * linear_flops(self.compress) + tokens * per_token
