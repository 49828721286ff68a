"""DIN's target attention: events weighted by an MLP that sees each one next to the candidate.

    a_t = MLP([e_t | c | e_t - c | e_t * c | s_t]),   v = sum_t a_t s_t,  no softmax

e_t and c are embeddings of one table, field by field, so an event with the candidate's own topic has e_t - c = 0 there,
trained or not. s_t is the whole event, including what the candidate lacks: dense fields, age, outcomes.

Source: DIN, arXiv 1706.06978 (P); e_t - c beside the product is that of its published code (M); s_t as an input is ours
(O), since there an event is nothing but its shared fields. All of it is plain XLA on packed rows: no row needs another.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from kunlun_jax.batch import Jagged
from kunlun_jax.nn.mlp import MLP
from pallas_kernels.jagged import zero_padding


class TargetAttention(nnx.Module):
    """The activation unit over one history.

    Args:
      dim: width of the events s.
      shared: channels of e and of c, all pairs of fields together; 0 where no field is shared: then a sees only s.
      hidden: widths of the unit's hidden layers.
    """

    def __init__(self, dim: int, shared: int, *, hidden: tuple[int, ...], activation: str, dtype, rngs: nnx.Rngs):
        self.unit = MLP((4 * shared + dim, *hidden, 1), activation=activation, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def weights(
        self,
        events: Jagged,
        fields: Float[Array, "rows pairs embedding"],
        candidate: Float[Array, "batch pairs embedding"],
    ) -> Float[Array, "rows 1"]:
        """The weight a of each row; rows without an event get finite values."""
        e = rearrange(fields, "rows pairs embedding -> rows (pairs embedding)").astype(self.dtype)
        c = rearrange(candidate, "batch pairs embedding -> batch (pairs embedding)").astype(self.dtype)
        c = c.at[events.example_ids()].get(mode="clip")
        return self.unit(jnp.concatenate([e, c, e - c, e * c, events.values], axis=1))

    def __call__(
        self,
        events: Jagged,
        fields: Float[Array, "rows pairs embedding"],
        candidate: Float[Array, "batch pairs embedding"],
    ) -> Float[Array, "batch dim"]:
        """The v of each example, zeros where it has no events.

        Args:
          events: s, ``[rows, dim]``, packed.
          fields: e, the event's field of each pair, packed likewise.
          candidate: c, the context feature of each pair.
        """
        weighed = zero_padding(self.weights(events, fields, candidate) * events.values, events.mask())
        return jax.ops.segment_sum(weighed, events.example_ids(), num_segments=candidate.shape[0])

    def flops(self, lengths: Int[np.ndarray, " batch"]) -> int:
        """Forward FLOPs of a batch with these history lengths; the sum over events is not counted."""
        return int(lengths.sum()) * self.unit.flops()
