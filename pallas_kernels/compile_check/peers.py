"""What other libraries would take for the window of `work.WINDOW` on an H100, by their own tiles; nothing of it ran.

tokamax's Mosaic kernels (read at 783ea95) pad each example to whole tiles. In its forward pass two warpgroups of 64
queries share a range of keys, from the first to the last that any of the 128 reads, in tiles of 128; so it skips what
our kernel skips, but reads and writes the padding. Its backward kernels know no range: dq meets every key and dk and dv
every query, in tiles of 64 by 64 that are all masked. What it would take is predicted with the instructions of our
kernels, whose tiles have 64 by 64 scores as well: the difference is tiles and bytes alone.

cuDNN has no window that reaches to the right (`experiments.kernel_benchmark.libraries`), so it would do full attention.
Its tiles are not published, so it gets the roofline of exactly the pairs of valid rows, and the bytes of no padding: it
cannot be faster.
"""

from collections.abc import Mapping

import numpy as np

from pallas_kernels import roofline
from pallas_kernels.chips import Chip
from pallas_kernels.compile_check.work import WINDOW, Work, lengths
from pallas_kernels.operators.window_attention import shapes

PASSES: Mapping[roofline.Pass, tuple[str, ...]] = {"forward": ("forward",), "backward": ("dq", "dkv")}
"""Pass -> its kernels."""
UNIT = 64
"""Queries of a warpgroup of tokamax, and rows of a tile of its backward kernels."""
_KEYS = 128
"""Keys of a tile of its forward pass."""
_FLOATS = {"forward": 2, "dq": 3, "dkv": 3}
"""Numbers for each row and head: maximum and sum, and delta."""
_ARRAYS = {"forward": 2, "dq": 5, "dkv": 6}
"""Arrays of padded rows that a pass reads or writes; in the forward pass queries and results, for keys are skipped."""


def tokamax(direction: str) -> Work:
    """What tokamax's kernel does for `WINDOW`, in tiles of 64 by 64.

    Args:
      direction: "forward", "dq" or "dkv".
    """
    held, rows = lengths(WINDOW), -(-WINDOW.max_length // _KEYS) * _KEYS
    units = WINDOW.batch * rows // UNIT
    row = 2 * WINDOW.heads * WINDOW.dim
    moved = WINDOW.batch * rows * (_ARRAYS[direction] * row + 4 * WINDOW.heads * _FLOATS[direction])
    heads = WINDOW.heads
    if direction != "forward":
        trips = heads * units * rows // UNIT
        # Two units read what is loaded once.
        return Work(heads * units, trips, trips, trips // 2 * UNIT, moved)
    below, above = WINDOW.window
    first = np.arange(0, rows, 2 * UNIT)
    starts = np.maximum(first - below, 0), np.maximum(first + 2 * UNIT - 1 - below, 0)
    stops = [np.minimum(first + more + above + 1, held[:, None]) for more in (0, 2 * UNIT - 1)]
    tiles = np.arange(rows // _KEYS) * _KEYS
    # [example, pair of units, tile of keys]
    met = (tiles + _KEYS > starts[0][:, None]) & (tiles < stops[1][..., None])
    edge = met & ((tiles < starts[1][:, None]) | (tiles + _KEYS > stops[0][..., None]))
    # Tiles of 64 by 64 in one of two units by `_KEYS`.
    each = heads * 2 * _KEYS // UNIT
    pairs, keys = int(met.sum()), int(met.any(1).sum()) * _KEYS
    return Work(heads * units, each * pairs, each * int(edge.sum()), heads * pairs * _KEYS, moved + 2 * keys * row)


def cudnn(chip: Chip) -> Mapping[roofline.Pass, float]:
    """The least seconds in which full attention over the valid rows of `WINDOW` can be done, by pass."""
    whole = (WINDOW.max_length, WINDOW.max_length)
    cost = shapes.cost(lengths(WINDOW), window=whole, heads=WINDOW.heads, dim=WINDOW.dim)
    return {
        pass_: roofline.limit(cost, pass_, chip, heads=WINDOW.heads, activation="softmax").seconds for pass_ in PASSES
    }
