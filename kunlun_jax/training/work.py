"""What a training step of a run executes and moves, beside what of it is useful: see `kunlun_jax.executed`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from kunlun_jax.data.shares import shares
from kunlun_jax.executed import NOTHING, OneDevice, Program, Work, on_each_device, size_in_bytes
from kunlun_jax.training.step import Trainer, TrainState
from pallas_kernels.jagged import aligned

Lengths = Mapping[str, Int[np.ndarray, " examples"]]
"""Event type -> events of each example."""


def work_of_step(trainer: Trainer, capacity: Mapping[str, int], batch_size: int, lengths: Lengths) -> Work:
    """FLOPs of the matrix products of a training step and bytes that it moves, means over batches with these histories.

    Beside what `kunlun_jax.executed` counts, bytes are of the batch, read once, and of the dense parameters, their
    optimizer's state and the metric sums, read and written once. Tables and their optimizer's state count by the rows
    that the step gathers and scatters. On a mesh it is the sum over devices, each with its share of the batch and with
    the parameters that it holds; what they send one another is left out.

    Args:
      trainer: one that has compiled its step.
      capacity: packed rows per batch and device of each event type.
      batch_size: examples of a batch, of all devices together.
      lengths: of some examples, in the order of the data; whole batches of them are used, at least one, for which they
        are repeated where they are too few.

    Raises:
      NotCounted: the step holds a fused kernel, or a loop that does not follow from histories.
      ValueError: the trainer has compiled nothing yet.
    """
    if trainer.traced is None:
        raise ValueError("the trainer has compiled no step; take one first")
    closed, shapes = trainer.traced
    whole = [_offset(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    device = on_each_device(closed)
    places = [None if number is None else whole[number] for number in device.arguments]
    program = Program(device.closed, [place is not None for place in places])
    examples = max((len(of) for of in lengths.values()), default=0)
    batches = max(1, examples // batch_size)
    total = NOTHING
    for number in range(batches):
        chosen = np.arange(number * batch_size, (number + 1) * batch_size)
        held = {name: of[chosen % len(of)] for name, of in lengths.items()}
        rows = sum((aligned(of) for of in held.values()), np.zeros(batch_size, np.int64))
        for share in shares(rows, device.devices):
            offsets = {name: offsets_of(of[share], capacity[name]) for name, of in held.items()}
            total += program.work([offsets[name][field] for name, field in filter(None, places)])
    state, batch = _of_one_device(shapes, device)
    return total * (1 / batches) + Work(0, 2 * bytes_beside_tables(state) + bytes_of(batch)) * device.devices


def _of_one_device(shapes: Any, device: OneDevice) -> Any:
    """The shapes of (state, batch) that a device holds; what a step takes no argument for is without elements."""
    leaves, structure = jax.tree.flatten(shapes)
    for number, atom in zip(device.arguments, device.closed.jaxpr.invars, strict=True):
        if number is not None:
            leaves[number] = atom.aval
    return structure.unflatten(leaves)


def bytes_beside_tables(state: TrainState) -> int:
    """Bytes of all that a step reads and writes whole, of the shapes of a state."""
    return bytes_of(dataclasses.replace(state, tables={}, table_optimizer={}))


def bytes_of(tree: Any) -> int:
    """Bytes of the arrays of a tree, or of their shapes."""
    return sum(map(size_in_bytes, jax.tree.leaves(tree)))


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
