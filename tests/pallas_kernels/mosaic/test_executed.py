"""What the streaming kernels execute, by their work lists: all that is useful, and in proportion to it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import jagged
from pallas_kernels.mosaic import schedule, sm90, sm100, tuning
from pallas_kernels.mosaic.config import Config, Sm90Config, Sm100Config
from pallas_kernels.mosaic.executed import executed
from pallas_kernels.operators.window_attention.shapes import pairs

TILE_ROWS = {"sm90": sm90.TILE_ROWS, "sm100": sm100.TILE_ROWS}
each_generation = pytest.mark.parametrize("generation", ["sm90", "sm100"])


def packed(lengths, rows=None):
    splits = np.concatenate([[0], np.cumsum(jagged.aligned(np.asarray(lengths)))]).astype(np.int32)
    return schedule.packed(jnp.asarray(splits), jnp.asarray(lengths, jnp.int32), rows or int(splits[-1]))


@functools.cache
def work_list(rows, **arguments):
    """Of self-attention; one program for all lengths in an array of `rows` rows."""

    def make(start, length, extent):
        side = schedule.Side(start, length, extent, rows)
        return schedule.work_list(side, side, balance=True, **arguments)

    return jax.jit(make)


def counted(generation: str, config: Config, lengths, window=None, rows=None):
    """Of self-attention."""
    side, item_rows = packed(lengths, rows), config.units * config.run * TILE_ROWS[generation]
    make = work_list(side.rows, item_rows=item_rows, window=window)
    return executed(make(*side[:3]), config, window)


def in_the_window(pass_: str, generation: str, lengths, window):
    """Of a pass of window attention, with its built-in block sizes."""
    key = tuning.Key(pass_, 128, sum(window) + 1, "softmax")
    return counted(generation, tuning.default(key, generation, "window_attention"), lengths, window, rows=32768)


@each_generation
@pytest.mark.parametrize("pass_", tuning.PASSES)
def test_a_window_computes_in_proportion_to_its_rows(pass_, generation):
    """From 512 to 32768 rows: no more scores a row than the window and the edges of tiles need, at any length."""
    window, lengths = (100, 100), [512 * 2**i for i in range(7)]
    found = [in_the_window(pass_, generation, [n], window) for n in lengths]
    a_row = [work.scores / n for work, n in zip(found, lengths, strict=True)]
    # A tile of rows, the window on both sides, and one tile of streamed rows that begins before it.
    config = tuning.default(tuning.Key(pass_, 128, 201, "softmax"), generation, "window_attention")
    assert max(a_row) <= TILE_ROWS[generation] + 200 + config.block
    assert a_row[-1] == pytest.approx(a_row[-2], rel=0.01)
    useful = [pairs(np.array([n]), window) for n in lengths]
    assert all(work.scores >= n for work, n in zip(found, useful, strict=True))
    # Full attention of the longest would compute 32768 a row.
    assert found[-1].scores < 2.2 * useful[-1]
    rows_loaded = [work.loaded / n for work, n in zip(found, lengths, strict=True)]
    assert rows_loaded[-1] == pytest.approx(rows_loaded[-2], rel=0.01)


@each_generation
def test_a_wider_window_computes_its_own_width_more(generation):
    """The edges cost the same whatever the window."""
    found = [in_the_window("dq", generation, [4096], (w, w)).scores / 4096 for w in (256, 512, 1024)]
    useful = [pairs(np.array([4096]), (w, w)) / 4096 for w in (256, 512, 1024)]
    over = np.subtract(found, useful)
    assert over.min() > 0 and over.max() < TILE_ROWS[generation] + 64 + 1


@each_generation
def test_of_full_tiles_all_scores_are_computed_once(generation):
    config = {"sm90": Sm90Config(block=64), "sm100": Sm100Config(block=64)}[generation]
    work = counted(generation, config, [512, 256])
    assert work.scores == 512**2 + 256**2
    # Every item, two units of rows, loads all rows of its example.
    assert work.loaded == (512 * 512 + 256 * 256) // (2 * TILE_ROWS[generation])
    window = counted(generation, config, [512, 256], (512, 512))
    assert window == work


@each_generation
def test_a_unit_without_rows(generation):
    """On sm_90 it computes along with the other, on sm_100 it does not."""
    config = {"sm90": Sm90Config(block=64), "sm100": Sm100Config(block=64)}[generation]
    assert counted(generation, config, [8]).scores == {"sm90": 2 * 64 * 64, "sm100": 128 * 64}[generation]
    assert counted(generation, config, [8], (8, 8)).scores == TILE_ROWS[generation] * 64
    assert counted(generation, config, [0, 8]) == counted(generation, config, [8])


@each_generation
def test_kept_keys_are_loaded_once_for_a_run(generation):
    kind = {"sm90": Sm90Config, "sm100": Sm100Config}[generation]
    rows, lengths = 2 * TILE_ROWS[generation], [4 * 2 * TILE_ROWS[generation], 24]
    found = []
    for run in (1, 4):
        side = packed(lengths)
        work = schedule.work_list(side, schedule.dense(2, 128), item_rows=rows * run, balance=False)
        found.append(executed(work, kind(block=64, stages=2, run=run)))
    once, kept = found
    # The last 24 rows take one unit; on sm_90 its twin computes along.
    units = 4 * 2 + {"sm90": 2, "sm100": 1}[generation]
    assert once.scores == kept.scores == units * TILE_ROWS[generation] * 128
    assert (once.loaded, kept.loaded) == (5 * 128, 2 * 128)
