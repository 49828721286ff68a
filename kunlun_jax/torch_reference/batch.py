"""A packed `Batch` as padded tensors: what PyTorch users have, a rectangle and a mask."""

import dataclasses

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kunlun_jax.batch import Batch, Jagged


@dataclasses.dataclass(frozen=True)
class Ids:
    """Lists of ids: a multi-valued feature."""

    ids: Int[Tensor, "batch time"]
    mask: Bool[Tensor, "batch time"]


@dataclasses.dataclass(frozen=True)
class Events:
    """Histories of one event type, oldest first, padded with zeros after the newest."""

    ids: Int[Tensor, "batch time fields"]
    dense: Float[Tensor, "batch time dense"]
    age: Float[Tensor, "batch time"]
    """Request time minus event time, in seconds."""
    mask: Bool[Tensor, "batch time"]
    """True where there is an event."""


@dataclasses.dataclass(frozen=True)
class PaddedBatch:
    """A batch; columns are in the order of the schema, ids are rows of tables."""

    categorical: Int[Tensor, "batch categorical"]
    multi_valued: dict[str, Ids]
    dense: Float[Tensor, "batch dense"]
    events: dict[str, Events]
    labels: Float[Tensor, "batch tasks"]
    weights: Float[Tensor, " batch"]


def from_packed(batch: Batch, *, dtype: torch.dtype = torch.float32, time: int | None = None) -> PaddedBatch:
    """The same examples, padded.

    Only rows that hold an event are read, so whatever is in the gaps of the packed rows has no effect.

    Args:
      batch: on the host or a device.
      dtype: of all numbers except ids.
      time: the length to which every history is padded; None is the longest of its event type in this batch.

    Raises:
      ValueError: a history is longer than `time`.
    """

    def ids(values) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.int64))

    def numbers(values) -> Tensor:
        return torch.from_numpy(np.array(values)).to(dtype)

    def events(name: str, packed: Jagged) -> Events:
        index, mask = _places(name, packed, time)
        values = {key: _padded(np.asarray(array), index, mask) for key, array in packed.values.items()}
        return Events(ids(values["ids"]), numbers(values["dense"]), numbers(values["age"]), torch.from_numpy(mask))

    def lists(name: str, packed: Jagged) -> Ids:
        index, mask = _places(name, packed, time)
        return Ids(ids(_padded(np.asarray(packed.values), index, mask)), torch.from_numpy(mask))

    return PaddedBatch(
        categorical=ids(batch.categorical),
        multi_valued={name: lists(name, packed) for name, packed in batch.multi_valued.items()},
        dense=numbers(batch.dense),
        events={name: events(name, packed) for name, packed in batch.events.items()},
        labels=numbers(batch.labels),
        weights=numbers(batch.weights),
    )


def pad(packed: Jagged, values) -> Tensor:
    """Packed rows ``[rows, ...]`` of the examples of `packed` as ``[batch, time, ...]``, zero where there is none."""
    index, mask = _places("values", packed, None)
    return torch.from_numpy(_padded(np.asarray(values), index, mask))


def _places(name: str, packed: Jagged, time: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The packed row of each position ``[batch, time]``, and whether there is one."""
    starts, lengths = np.asarray(packed.row_splits)[:-1], np.asarray(packed.lengths)
    longest = int(lengths.max(initial=0))
    if time is not None and longest > time:
        raise ValueError(f"{name}: an example has {longest} rows; pad to that many, not to time={time}")
    place = np.arange(longest if time is None else time)
    mask = place < lengths[:, None]
    return np.where(mask, starts[:, None] + place, 0), mask


def _padded(values: np.ndarray, index: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`values` at `index`, zero outside `mask`."""
    return np.where(mask.reshape(mask.shape + (1,) * (values.ndim - 1)), values[index], np.zeros((), values.dtype))
