"""Shares of a batch for many devices: as many examples each, and about as many rows of histories.

Work follows the rows, and a step takes as long as its fullest share. So examples are dealt by their rows, longest first
and to and fro: the difference of two shares is at most that of single examples.
"""

import jax
import numpy as np
from jaxtyping import Int

from kunlun_jax.batch import Batch


def shares(rows: Int[np.ndarray, " examples"], count: int) -> list[Int[np.ndarray, " _"]]:
    """Cuts a batch into `count` shares, whose sizes differ by one at most.

    Args:
      rows: packed rows of each example, of all its histories together.
      count: how many shares.

    Returns:
      For each share the numbers of its examples, ascending.
    """
    order = np.argsort(-rows, kind="stable")
    number = np.arange(len(rows))
    turn, place = np.divmod(number, count)
    owner = np.where(turn % 2 == 0, place, count - 1 - place)
    return [np.sort(order[owner == share]) for share in range(count)]


def joined(batches: list[Batch]) -> Batch:
    """Shares, each packed by itself, one after the other along the first axis of every array."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
