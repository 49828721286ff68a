"""What a streaming kernel executes, counted from its work list: rows that are loaded and scores that are computed.

Useful scores are those of the operator's definition (`pallas_kernels.costs`). A kernel computes whole tiles, so rows
past the end of an example and past the edges of a window are computed too, and masked where they would count. The
counts use the kernels' own list and the bounds of their loops, so they say without a chip what a block size costs.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from pallas_kernels.mosaic import plan, schedule, sm90_compute, sm100_rows, streaming
from pallas_kernels.mosaic.config import Config, Sm100Config
from pallas_kernels.mosaic.schedule import WorkList


class Executed(NamedTuple):
    """Work of one pass for one head that stays and one that streams.

    Attributes:
      loaded: streamed rows that are loaded, of each of the two streamed arrays.
      scores: scores that are computed, those that are masked among them.
      tiles: stationary tiles of a unit that meet a streamed tile.
      edges: pairs of a stationary and a streamed tile in which some scores do not count: those that are masked, where
        anything is (`plan.Plan.masks`).
    """

    loaded: int
    scores: int
    tiles: int
    edges: int


def executed(
    work: WorkList, config: Config, window: tuple[int, int] | None = None, *, softmax: bool = False
) -> Executed:
    """Counts what the kernel of `config`'s generation does with a work list.

    Args:
      work: made with items of ``config.units * config.run * TILE_ROWS`` rows, and with `window`.
      config: block sizes; its class says the generation.
      window: ``(below, above)`` as in `schedule.work_list`.
      softmax: whether a weight depends on more than its score; on sm_100, units with fewer rows than a tile mask then.
    """
    # Of a large batch the products would not fit into 32 bits.
    loaded, computed, whole = (np.asarray(x, np.int64) for x in _tiles(work, config, window, softmax))
    pairs = int(computed.sum())
    return Executed(
        loaded=int(loaded.sum()) * config.block,
        scores=pairs * _tile_rows(config) * config.block,
        tiles=int((computed > 0).sum()),
        edges=pairs - int(whole.sum()),
    )


def _tile_rows(config: Config) -> int:
    return sm100_rows.TILE_ROWS if isinstance(config, Sm100Config) else sm90_compute.TILE_ROWS


@functools.partial(jax.jit, static_argnames=("config", "window", "softmax"))
def _tiles(
    work: WorkList, config: Config, window: tuple[int, int] | None, softmax: bool
) -> tuple[Int[Array, " items"], Int[Array, "items units"], Int[Array, "items units"]]:
    """Streamed tiles that each item loads, those that its units compute with, and those of them that need no mask."""
    hopper, tile_rows, block = not isinstance(config, Sm100Config), _tile_rows(config), config.block
    turn_rows = config.units * tile_rows

    def met(item: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The first streamed tile that a unit computes with, and the one after the last."""
        count, held = plan.tiles_of(item, block), item[schedule.COUNT] - start
        if window is None:
            # On sm_90 a unit without rows computes along with the other one; in a turn without rows neither does.
            rows = item[schedule.EXTENT if hopper and config.run > 1 else schedule.COUNT]
            computes = (start // turn_rows * turn_rows < rows) & (hopper | (held > 0))
            return jnp.int32(0), jnp.where(computes, count, 0)
        if hopper:
            return streaming.tiles_in_reach(start, tile_rows, item, window, block)
        return sm100_rows.reached(item[schedule.SHIFT] + start, held, count, block, window)

    def of_unit(item: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        begin, end = met(item, start)
        # Without a mask: a tile of rows that all count, and that all rows of the unit see.
        first, last = begin, jnp.minimum(end, item[schedule.OTHER_COUNT] // block)
        if window is not None:
            (below, above), middle = window, item[schedule.SHIFT] + start
            first = jnp.maximum(first, -((below + 1 - tile_rows - middle) // block))
            last = jnp.minimum(last, (middle + above + 1) // block)
        whole = jnp.maximum(last - first, 0)
        if softmax and not hopper:
            whole = jnp.where(item[schedule.COUNT] - start >= tile_rows, whole, 0)
        return end - begin, whole

    starts = jnp.arange(0, turn_rows * config.run, tile_rows, dtype=jnp.int32)
    loaded = jax.vmap(lambda item: plan.tiles_of(item, block))(work.items)
    computed, whole = jax.vmap(lambda item: jax.vmap(lambda start: of_unit(item, start))(starts))(work.items)
    used = jnp.arange(work.items.shape[0]) < work.used[0]
    computed, whole = (jnp.where(used[:, None], x, 0) for x in (computed, whole))
    return jnp.where(used, loaded, 0), computed, whole
