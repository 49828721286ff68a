"""InterFormer in PyTorch.

    cross arch:        X_sum = Gate(W X),   S_sum = Gate([S_CLS | S_PMA | S_recent]),   Gate(Z) = sigma(Z * MLP(Z))
    interaction arch:  X'    = X + MLP(Interaction([X | S_sum]))
    sequence arch:     S'    = MHA(S + PFFN(X_sum, S)),   PFFN(X_sum, S) = S f(X_sum)
    logits = MLP([X_sum^L | S_sum^L]);   before the first layer X_sum is prepended to S as its CLS tokens

Source: InterFormer, arXiv 2411.09852 (P); a sequence for each event type, norm and residual around MHA, the
residuals of PFFN and interaction, and dot products of tokens at length 1 are ours (O).
"""

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kunlun_jax.data.dataset import Moments
from kunlun_jax.data.schema import Schema
from kunlun_jax.models.interformer import InterFormerConfig
from kunlun_jax.torch_reference.attention import WindowAttention
from kunlun_jax.torch_reference.batch import PaddedBatch
from kunlun_jax.torch_reference.interaction import dot_products, unit
from kunlun_jax.torch_reference.mlp import MLP
from kunlun_jax.torch_reference.pooling import SeedAttention
from kunlun_jax.torch_reference.system import EVENT, System

Sequence = tuple[Tensor, Tensor, Tensor]
"""Tokens ``[batch, time, dim]``, ages ``[batch, time]`` in seconds, and a mask ``[batch, time]``."""
GATES = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "identity": lambda x: x}


class Gate(nn.Module):
    """sigma(Z * MLP(Z)), the MLP one linear map."""

    def __init__(self, dim: int, kind: str):
        super().__init__()
        self.mlp = MLP((dim, dim), "silu")
        self.kind = kind

    def forward(self, z: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """The gated tokens."""
        return GATES[self.kind](z * self.mlp(z))


class CrossNetwork(nn.Module):
    """x' = x_0 * (W x + b) + x, layer by layer; W is V U of this rank, or full for rank 0. Source: DCNv2 (P)."""

    def __init__(self, dim: int, layers: int, rank: int):
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(dim, rank, bias=False) for _ in range(layers if rank else 0))
        self.maps = nn.ModuleList(nn.Linear(rank or dim, dim) for _ in range(layers))

    def forward(self, x0: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """The output of the last layer."""
        x = x0
        for i, layer in enumerate(self.maps):
            x = x0 * layer(self.down[i](x) if len(self.down) else x) + x
        return x


class Interaction(nn.Module):
    """X' = MLP of the dot products of all pairs of tokens, of a cross network, or of both ("dhen")."""

    def __init__(self, tokens_in: int, tokens_out: int, config: InterFormerConfig):
        super().__init__()
        channels, kind = tokens_in * config.dim, config.interaction
        self.dot = kind in ("dot", "dhen")
        self.cross = CrossNetwork(channels, config.cross_layers, config.cross_rank) if kind != "dot" else None
        inputs = tokens_in * (tokens_in - 1) // 2 * self.dot + channels * (self.cross is not None)
        self.mlp = MLP((inputs, *config.interaction_hidden, tokens_out * config.dim), config.activation)
        self.shape, self.unit_products = (tokens_out, config.dim), config.unit_products

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch out dim"]:
        """X'."""
        found = []
        if self.dot:
            found.append(dot_products(unit(x) if self.unit_products else x))
        if self.cross is not None:
            found.append(self.cross(x.flatten(1)))
        return self.mlp(torch.cat(found, dim=1)).unflatten(1, self.shape)


class PFFN(nn.Module):
    """S f(X_sum), f(X_sum) = W X_sum in R^{d x d}."""

    def __init__(self, tokens: int, dim: int):
        super().__init__()
        self.token_map = nn.Linear(tokens, dim, bias=False)

    def forward(
        self, events: Float[Tensor, "batch time dim"], x_sum: Float[Tensor, "batch cls dim"]
    ) -> Float[Tensor, "batch time dim"]:
        """The events, mapped by the matrix of their example."""
        f = einsum(self.token_map.weight, x_sum, "inner cls, batch cls dim -> batch inner dim")
        return einsum(events, f, "batch time inner, batch inner dim -> batch time dim")


def with_cls(x_sum: Float[Tensor, "batch cls dim"], sequence: Sequence) -> Sequence:
    """The sequence with X_sum prepended; a CLS token has age 0."""
    s, age, mask = sequence
    front = x_sum.shape[:2]
    return (
        torch.cat([x_sum, s], dim=1),
        torch.cat([age.new_zeros(front), age], dim=1),
        torch.cat([mask.new_ones(front), mask], dim=1),
    )


class CrossArch(nn.Module):
    """X_sum and the S_sum of each event type."""

    def __init__(self, names: tuple[str, ...], tokens: int, config: InterFormerConfig):
        super().__init__()
        self.compress = nn.Linear(tokens, config.cls_tokens, bias=False)
        self.gate = Gate(config.dim, config.gate)
        self.pool, self.history_gate = nn.ModuleDict(), nn.ModuleDict()
        for name in names:
            pool = SeedAttention(config.pma_tokens, config.dim, heads=config.heads, norm_seeds=False)
            self.pool[EVENT + name], self.history_gate[EVENT + name] = pool, Gate(config.dim, config.gate)
        self.cls, self.recent = config.cls_tokens, config.recent_tokens

    def of_context(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch cls dim"]:
        """X_sum."""
        return self.gate(self.compress(x.transpose(1, 2)).transpose(1, 2))

    def of_sequence(
        self, name: str, s: Float[Tensor, "batch time dim"], mask: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "batch summary dim"]:
        """S_sum of one sequence, which begins with its CLS tokens."""
        newest = []
        for example, length in zip(s, mask.sum(1).tolist(), strict=True):
            rows = example[max(length - self.recent, 0) : length]
            newest.append(torch.cat([rows.new_zeros(self.recent - len(rows), rows.shape[1]), rows]))
        pooled = self.pool[EVENT + name](s, mask)
        return self.history_gate[EVENT + name](torch.cat([s[:, : self.cls], pooled, torch.stack(newest)], dim=1))


class InterFormerLayer(nn.Module):
    """The three archs of a layer; without event types there is no cross arch, since nothing would read it."""

    def __init__(self, names: tuple[str, ...], tokens: int, config: InterFormerConfig):
        super().__init__()
        self.cross = CrossArch(names, tokens, config) if names else None
        self.interaction = Interaction(tokens + len(names) * config.summary_tokens, tokens, config)
        self.ffn, self.attention = nn.ModuleDict(), nn.ModuleDict()
        self.ffn_residual, self.interaction_residual = config.ffn_residual, config.interaction_residual
        for name in names:
            self.ffn[EVENT + name] = PFFN(config.cls_tokens, config.dim)
            # A window of a million events is all of them.
            self.attention[EVENT + name] = WindowAttention(
                config.dim, heads=config.heads, window=1_000_000, rote=config.rote, norm=config.attention_norm
            )

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], sequences: dict[str, Sequence], *, first: bool
    ) -> tuple[Float[Tensor, "batch tokens dim"], dict[str, Sequence]]:
        """X' and S'; the first layer prepends X_sum to each sequence."""
        if self.cross is None:
            return self.interact(x, []), sequences
        x_sum = self.cross.of_context(x)
        if first:
            sequences = {name: with_cls(x_sum, sequence) for name, sequence in sequences.items()}
        s_sum = [self.cross.of_sequence(name, s, mask) for name, (s, _, mask) in sequences.items()]
        after = {}
        for name, (s, age, mask) in sequences.items():
            mapped = self.ffn[EVENT + name](s, x_sum)
            s = s + mapped if self.ffn_residual else mapped
            after[name] = self.attention[EVENT + name](s, age, mask), age, mask
        return self.interact(x, s_sum), after

    def interact(
        self, x: Float[Tensor, "batch tokens dim"], s_sum: list[Float[Tensor, "batch summary dim"]]
    ) -> Float[Tensor, "batch tokens dim"]:
        """X' of the context tokens."""
        new = self.interaction(torch.cat([x, *s_sum], dim=1))
        return x + new if self.interaction_residual else new


class InterFormer(System):
    """The model with its tables; arguments are those of `kunlun_jax.torch_reference.system.System`."""

    def __init__(self, schema: Schema, config: InterFormerConfig, *, dense_moments: Moments | None = None):
        super().__init__(schema, config, event_dims=None, dense_moments=dense_moments)
        tokens = self.context.tokens
        self.layers = nn.ModuleList(InterFormerLayer(self.names, tokens, config) for _ in range(config.layers))
        self.summary = CrossArch(self.names, tokens, config)
        summary = config.cls_tokens + len(self.names) * config.summary_tokens
        self.make_head(summary * config.dim, config)

    def forward(self, batch: PaddedBatch) -> Float[Tensor, "batch tasks"]:
        """Logits. Dropout acts under `train()`."""
        context, events = self.inputs(batch)
        x = context
        sequences = {name: (s, batch.events[name].age, batch.events[name].mask) for name, s in events.items()}
        for index, layer in enumerate(self.layers):
            x, sequences = layer(x, sequences, first=index == 0)
        s_sum = [self.summary.of_sequence(name, s, mask) for name, (s, _, mask) in sequences.items()]
        return self.logits(torch.cat([self.summary.of_context(x), *s_sum], dim=1), context)
