"""Pairs of a query tile and a key tile, numbered by query tile, for loops that visit a chunk of them per step.

The list of pairs is never stored, only where each query tile's pairs end; a step continues at the tile at which the
previous step ended.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Numbering(NamedTuple):
    """The numbers that the pairs have.

    Attributes:
      number: how many pairs there are.
      ends: pairs of the tiles up to and including each; `chunk` entries more than tiles, which no pair reaches.
    """

    number: Int[Array, ""]
    ends: Int[Array, " padded"]


class Step(NamedTuple):
    """The pairs of one step.

    Attributes:
      index: number of each pair, consecutive.
      used: False for entries after the last pair.
      tile: query tile of each pair, ascending without gaps; entries after the last pair have the last tile.
    """

    index: Int[Array, " chunk"]
    used: Bool[Array, " chunk"]
    tile: Int[Array, " chunk"]


def numbering(each: Int[Array, " tiles"], chunk: int) -> Numbering:
    """Numbers the pairs, of which query tiles have `each`: 1 or more for a tile in use, 0 for those after."""
    ends = jnp.cumsum(each, dtype=jnp.int32)
    return Numbering(ends[-1], jnp.pad(ends, (0, chunk), constant_values=jnp.iinfo(jnp.int32).max))


def of_step(
    pairs: Numbering, step: Int[Array, ""], chunk: int, reached: Int[Array, ""], tiles_used: Int[Array, ""]
) -> Step:
    """The pairs of a step. `reached` is the query tile at which the previous step ended, 0 for the first step.

    Every tile in use has a pair, so a step reaches at most `chunk` tiles further, and looks only at their ends.
    """
    index = step * chunk + jnp.arange(chunk, dtype=jnp.int32)
    used = index < pairs.number
    ends = jax.lax.dynamic_slice_in_dim(pairs.ends, reached, chunk)
    tile = reached + (ends[None, :] <= index[:, None]).sum(axis=1, dtype=jnp.int32)
    return Step(index, used, jnp.where(used, tile, tiles_used - 1))
