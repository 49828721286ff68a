"""What a training step of a run executes, beside what of it is useful: see `kunlun_jax.executed`."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from kunlun_jax.executed import Program
from kunlun_jax.training.step import Trainer
from pallas_kernels.jagged import aligned

Lengths = Mapping[str, Int[np.ndarray, " examples"]]
"""Event type -> events of each example."""


def executed_flops(trainer: Trainer, capacity: Mapping[str, int], batch_size: int, lengths: Lengths) -> float:
    """FLOPs per example of the matrix products of a training step, the mean over batches with these histories.

    Args:
      trainer: one that has compiled its step.
      capacity: packed rows per batch of each event type.
      batch_size: examples of a batch.
      lengths: of some examples, in the order of the data; whole batches of them are used, at least one, for which they
        are repeated where they are too few.

    Raises:
      NotCounted: the step holds a fused kernel, or a loop that does not follow from histories.
      ValueError: the trainer has compiled nothing yet.
    """
    if trainer.traced is None:
        raise ValueError("the trainer has compiled no step; take one first")
    closed, shapes = trainer.traced
    places = [_offset(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    program = Program(closed, [place is not None for place in places])
    examples = max((len(of) for of in lengths.values()), default=0)
    batches = max(1, examples // batch_size)
    total = 0
    for number in range(batches):
        chosen = np.arange(number * batch_size, (number + 1) * batch_size)
        offsets = {name: offsets_of(of[chosen % len(of)], capacity[name]) for name, of in lengths.items()}
        total += program.flops([offsets[name][field] for name, field in filter(None, places)])
    return total / (batches * batch_size)


def offsets_of(lengths: Int[np.ndarray, " batch"], capacity: int) -> dict[str, Int[np.ndarray, " _"]]:
    """`row_splits` and `lengths` of a batch of histories; what does not fit into the capacity is left out."""
    ends = np.minimum(np.cumsum(aligned(lengths)), capacity)
    splits = np.concatenate([[0], ends]).astype(np.int32)
    return {"row_splits": splits, "lengths": np.minimum(lengths, np.diff(splits)).astype(np.int32)}


def _offset(path: Sequence[Any]) -> tuple[str, str] | None:
    """Event type and field of a leaf of (state, batch) that is an offset of events; None for all others."""
    names = [getattr(key, "name", getattr(key, "key", getattr(key, "idx", None))) for key in path]
    found = names[0] == 1 and names[1] == "events" and names[-1] in ("row_splits", "lengths")
    return (str(names[2]), str(names[-1])) if found else None
