"""What a pass of an operator has to do at the shape at which it is predicted: tiles, and bytes of device memory.

Tiles are counted from the kernel's own work list (`pallas_kernels.mosaic.executed`), bytes as `shapes.cost` of each
operator counts them, but of one kernel: both kernels of a backward pass read their operands, and each writes its own
results. What XLA does around them, such as the sum over the rows that gives delta, is not theirs.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from pallas_kernels import jagged
from pallas_kernels.costs import drawn_lengths
from pallas_kernels.mosaic import launch, schedule, target
from pallas_kernels.mosaic.config import Config
from pallas_kernels.mosaic.executed import executed
from pallas_kernels.operators.gdpa import shapes as gdpa
from pallas_kernels.operators.seed_attention import shapes as seed_attention
from pallas_kernels.operators.seed_attention.mosaic import seed_side
from pallas_kernels.operators.window_attention import shapes as window_attention

Shape = gdpa.Shape | window_attention.Shape | seed_attention.Shape

GDPA = gdpa.Shape(batch=1152, max_length=1024, sparsity=1.0, keys=256)
"""The personalized FFN as published, full lengths, so that no tile is masked; of the activation a case has its own."""
WINDOW = window_attention.Shape(batch=1152, max_length=1024, jagged=True, window=(100, 100))
"""Kunlun's window over histories of users."""
SEEDS = {seeds: seed_attention.Shape(batch=1152, seeds=seeds, max_length=1000) for seeds in (64, 256)}
"""Kunlun's pooling, by the number of its seeds."""

_ITEM = 2
"""Bytes of an element."""
_FLOAT = 4


class Work(NamedTuple):
    """Of one pass, over all heads.

    Attributes:
      tiles: stationary tiles of a unit.
      trips: streamed tiles that they meet, in all.
      edges: those of `trips` that are masked.
      loaded: rows that are loaded of each of the two streamed arrays, in all.
      bytes: read and written in device memory.
    """

    tiles: int
    trips: int
    edges: int
    loaded: int
    bytes: int


def described() -> dict[str, dict]:
    """Name -> the sizes of each shape, as they are printed and stored; the activation is that of each case."""
    shapes = {"gdpa": GDPA, "window_attention": WINDOW} | {f"seed_attention-seeds{n}": x for n, x in SEEDS.items()}
    return {
        name: {field: value for field, value in dataclasses.asdict(shape).items() if field != "activation"}
        for name, shape in shapes.items()
    }


@functools.cache
def work(direction: str, generation: str, config: Config, shape: Shape) -> Work:
    """The work of a pass.

    Args:
      direction: "forward", "dq" or "dkv".
      generation: of the kernel.
      config: its block sizes.
      shape: what it is predicted for.
    """
    tile_rows = launch.kernel_of(target.Target(generation, 0)).TILE_ROWS
    stationary, streamed, window, moved = _sides(shape)
    if direction == "dkv":
        stationary, streamed = streamed, stationary
        window = window and (window[1], window[0])
    listed = schedule.work_list(
        stationary, streamed, item_rows=config.units * config.run * tile_rows, balance=False, window=window
    )
    found = executed(listed, config, window, softmax=not isinstance(shape, gdpa.Shape))
    pairs = found.scores // (tile_rows * config.block)
    heads = shape.heads
    return Work(heads * found.tiles, heads * pairs, heads * found.edges, heads * found.loaded, moved[direction])


def row_bytes(shape: Shape) -> int:
    """Bytes of an array with one row for each event, of all heads."""
    return int(lengths(shape).sum()) * shape.heads * shape.dim * _ITEM


def lengths(shape: Shape) -> np.ndarray:
    """Rows of each example, int32 ``[batch]``."""
    # Those of `WINDOW` and `SEEDS` are uniform from 1 on.
    sparsity = shape.sparsity if isinstance(shape, gdpa.Shape) else 0.5
    return drawn_lengths(shape.batch, shape.max_length, sparsity)


def _sides(shape: Shape) -> tuple[schedule.Side, schedule.Side, tuple[int, int] | None, Mapping[str, int]]:
    """Queries and keys, the window, and direction -> bytes."""
    held = lengths(shape)
    splits = np.concatenate([[0], np.cumsum(jagged.aligned(held))]).astype(np.int32)
    packed = schedule.packed(jnp.asarray(splits), jnp.asarray(held), int(splits[-1]))
    rows, row = int(held.sum()), shape.heads * shape.dim * _ITEM
    if isinstance(shape, window_attention.Shape):
        number = _FLOAT * shape.heads * rows  # a float for each row and head: log-sum-exp or delta
        moved = {"forward": 4 * rows * row + number, "dq": 5 * rows * row + 2 * number}
        return packed, packed, shape.window, moved | {"dkv": 6 * rows * row + 2 * number}
    if isinstance(shape, seed_attention.Shape):
        outputs = shape.batch * shape.seeds
        number = _FLOAT * shape.heads * outputs
        shared, each = shape.seeds * row, outputs * row
        moved = {
            "forward": shared + 2 * rows * row + each + number,
            # An example's gradient of the seeds is float32, for it is summed over the batch.
            "dq": shared + 2 * rows * row + each + each // _ITEM * _FLOAT + 2 * number,
            "dkv": shared + 4 * rows * row + each + 2 * number,
        }
        return seed_side(shape.seeds, shape.batch), packed, None, moved
    assert shape.keys is not None  # jagged keys are not predicted
    keys = shape.batch * shape.keys
    moved = {"forward": 2 * rows + 2 * keys, "dq": 3 * rows + 2 * keys, "dkv": 2 * rows + 4 * keys}
    return packed, schedule.dense(shape.batch, shape.keys), None, {name: row * n for name, n in moved.items()}
