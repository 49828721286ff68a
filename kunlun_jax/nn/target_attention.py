"""DIN's target attention: events weighed by an MLP that sees each beside the candidate.

    a_t = MLP([s_t | c | s_t - c | s_t * c]),   v = sum_t a_t s_t,  no softmax

Source: DIN, arXiv 1706.06978 (P); s_t - c beside the product is that of its published code (M). All of it is plain
XLA on packed rows: a row needs nothing of another one.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from kunlun_jax.batch import Jagged
from kunlun_jax.nn.mlp import MLP
from pallas_kernels.jagged import zero_padding


class TargetAttention(nnx.Module):
    """The activation unit over one history; `dim` is the width of events and candidate, `hidden` that of its MLP."""

    def __init__(self, dim: int, *, hidden: tuple[int, ...], activation: str, dtype, rngs: nnx.Rngs):
        self.unit = MLP((4 * dim, *hidden, 1), activation=activation, dtype=dtype, rngs=rngs)

    def weights(self, events: Jagged, candidate: Float[Array, "batch dim"]) -> Float[Array, "rows 1"]:
        """A of each row; rows without an event get something finite."""
        s = events.values
        c = candidate.at[events.example_ids()].get(mode="clip")
        return self.unit(jnp.concatenate([s, c, s - c, s * c], axis=1))

    def __call__(self, events: Jagged, candidate: Float[Array, "batch dim"]) -> Float[Array, "batch dim"]:
        """V of each example, zeros where it has no events."""
        weighed = zero_padding(self.weights(events, candidate) * events.values, events.mask())
        return jax.ops.segment_sum(weighed, events.example_ids(), num_segments=candidate.shape[0])

    def flops(self, lengths: Int[np.ndarray, " batch"]) -> int:
        """Forward FLOPs of a batch with these history lengths; the sum over events is not counted."""
        return int(lengths.sum()) * self.unit.flops()
