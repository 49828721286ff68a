"""What a streaming kernel executes, counted from its work list: rows that are loaded and scores that are computed.

Useful scores are those of the operator's definition (`pallas_kernels.costs`). A kernel computes whole tiles, so rows
past the end of an example and past the edges of a window are computed too, and masked. The counts use the kernels' own
list and the bounds of their loops, so they say without a chip what a block size costs.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.mosaic import plan, schedule, sm90_compute, sm100_rows, streaming
from pallas_kernels.mosaic.config import Config, Sm100Config
from pallas_kernels.mosaic.schedule import WorkList


class Executed(NamedTuple):
    """Work of one pass for one head that stays and one that streams.

    Attributes:
      loaded: streamed rows that are loaded, of each of the two streamed arrays.
      scores: scores that are computed, those that are masked among them.
    """

    loaded: int
    scores: int


def executed(work: WorkList, config: Config, window: tuple[int, int] | None = None) -> Executed:
    """Counts what the kernel of `config`'s generation does with a work list.

    Args:
      work: made with items of ``config.units * config.run * TILE_ROWS`` rows, and with `window`.
      config: block sizes; its class says the generation.
      window: ``(below, above)`` as in `schedule.work_list`.
    """
    # Of a large batch the products would not fit into 32 bits.
    loaded, computed = (int(np.asarray(x).sum(dtype=np.int64)) for x in _tiles(work, config, window))
    return Executed(loaded * config.block, computed * _tile_rows(config) * config.block)


def _tile_rows(config: Config) -> int:
    return sm100_rows.TILE_ROWS if isinstance(config, Sm100Config) else sm90_compute.TILE_ROWS


@functools.partial(jax.jit, static_argnames=("config", "window"))
def _tiles(work: WorkList, config: Config, window: tuple[int, int] | None) -> tuple[jax.Array, jax.Array]:
    """Streamed tiles that each item loads, and those that each of its units computes with."""
    hopper, tile_rows = not isinstance(config, Sm100Config), _tile_rows(config)
    turn_rows = config.units * tile_rows

    def of_unit(item: jax.Array, start: jax.Array) -> jax.Array:
        count, held = plan.tiles_of(item, config.block), item[schedule.COUNT] - start
        if window is None:
            # On sm_90 a unit without rows computes along with the other one; in a turn without rows neither does.
            rows = item[schedule.EXTENT if hopper and config.run > 1 else schedule.COUNT]
            return jnp.where((start // turn_rows * turn_rows < rows) & (hopper | (held > 0)), count, 0)
        if hopper:
            reach = (start, tile_rows, item, window, config.block)
            begin, end = streaming.tiles_in_reach(*reach)
        else:
            first = item[schedule.SHIFT] + start
            begin, end = sm100_rows.reached(first, held, count, config.block, window)
        return end - begin

    starts = jnp.arange(0, turn_rows * config.run, tile_rows, dtype=jnp.int32)
    loaded = jax.vmap(lambda item: plan.tiles_of(item, config.block))(work.items)
    computed = jax.vmap(lambda item: jax.vmap(lambda start: of_unit(item, start))(starts))(work.items)
    used = jnp.arange(work.items.shape[0]) < work.used[0]
    return jnp.where(used, loaded, 0), jnp.where(used[:, None], computed, 0)
