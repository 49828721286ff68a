"""The order of an epoch: a permutation of all rows, of which any part can be had by itself.

Up to `LISTED_ROWS` it is numpy's shuffle, and every process that packs keeps the last two orders as lists of 4 bytes a
row. Beyond, where a list would grow with the data, it is a Feistel network over the smallest power of four that holds
all rows: a permutation that is computed for each row by itself, in four rounds, and again while the result lies outside
(cycle walking; Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
"""

import functools

import numpy as np

LISTED_ROWS = 1 << 24
_ROUNDS = 4


def shuffled(rows: int, seed: int, epoch: int, index: np.ndarray) -> np.ndarray:
    """Which rows stand at the places `index` of the order of an epoch.

    Args:
      rows: how many there are.
      seed: of the run.
      epoch: from 0.
      index: int64 ``[places]``, from 0 below `rows`.

    Returns:
      int64 ``[places]``; all places together give each row once.
    """
    if rows <= LISTED_ROWS:
        return _listed(rows, seed, epoch)[index].astype(np.int64)
    return computed(rows, seed, epoch, index)


def computed(rows: int, seed: int, epoch: int, index: np.ndarray) -> np.ndarray:
    """`shuffled` by the Feistel network, in memory for `index` alone."""
    half = np.uint64(max(1, ((rows - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = _generator(seed, epoch).integers(0, 2**64, _ROUNDS, np.uint64)
    found = index.astype(np.uint64)
    outside = np.arange(len(found))
    while len(outside):
        left, right = found[outside] >> half, found[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        found[outside] = (left << half) | right
        outside = outside[found[outside] >= rows]
    return found.astype(np.int64)


@functools.lru_cache(maxsize=2)  # that of training, and that of an evaluation in its midst
def _listed(rows: int, seed: int, epoch: int) -> np.ndarray:
    """The whole order, int32."""
    order = np.arange(rows, dtype=np.int32)
    _generator(seed, epoch).shuffle(order)
    order.flags.writeable = False
    return order


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))


def _mixed(x: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
