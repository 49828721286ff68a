"""The tile schedule: every row in exactly one tile, never more tiles than the capacity."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.xla import tiles
from tests.pallas_kernels.operators import Layout

SCHEDULES = st.tuples(
    st.lists(st.integers(0, 70), min_size=4, max_size=4), st.sampled_from((8, 32, 64)), st.sampled_from((1, 5))
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(SCHEDULES)
def test_every_row_is_in_one_tile(case):
    lengths, tile_rows, chunk = case
    layout = Layout(tuple(lengths), spare=0)
    layout = Layout(tuple(lengths), spare=320 - layout.rows)
    plan = tiles.schedule(*layout.offsets, rows=layout.rows, tile_rows=tile_rows, chunk=chunk)
    example, block, count = (np.asarray(x) for x in plan[:3])
    used = int(plan.used)
    assert used == sum(-(-n // tile_rows) for n in lengths) <= tiles.capacity(layout.rows, 4, tile_rows) <= len(block)
    assert len(block) % chunk == 0
    assert (count[:used] > 0).all() and (count[used:] == 0).all()

    seen = np.zeros(layout.rows, int)
    for b, start, n in zip(example[:used], block[:used] * 8, count[:used], strict=True):
        assert layout.splits[b] <= start and start + n <= layout.splits[b] + lengths[b]
        seen[start : start + n] += 1
    np.testing.assert_array_equal(seen, layout.mask)

    for row_block, slot in enumerate(np.asarray(plan.slot)):
        if layout.mask[row_block * 8]:
            tile, inside = divmod(int(slot), tile_rows // 8)
            assert block[tile] + inside == row_block
        else:
            assert slot >= len(block) * tile_rows // 8


@pytest.mark.parametrize("tile_rows", [8, 32, 64])
def test_capacity_is_reached_and_linear(tile_rows):
    # A full tile and one more block each is the worst an example can do.
    lengths = (tile_rows + 8,) * 6
    layout = Layout(lengths, spare=0)
    plan = tiles.schedule(*layout.offsets, rows=layout.rows, tile_rows=tile_rows, chunk=1)
    assert int(plan.used) == 12
    assert tiles.capacity(layout.rows, 6, tile_rows) == 12
    assert tiles.capacity(2 * layout.rows, 12, tile_rows) == 24


def test_gather_and_untile_are_inverse_and_drop_the_padding():
    layout = Layout((0, 33, 5, 0, 64), spare=16)
    values = layout.random(np.random.default_rng(0), jnp.float32)
    plan = tiles.schedule(*layout.offsets, rows=layout.rows, tile_rows=32, chunk=1)
    tile = tiles.gather(tiles.to_blocks(values), plan.block, plan.count, tile_rows=32, heads=2)
    buffer = tiles.store(jnp.full((*tile.shape[:1], 32, 2, 4), jnp.nan), tile, jnp.int32(0), plan.count)
    rows = np.asarray(tiles.untile(buffer, plan.slot, layout.rows))
    np.testing.assert_array_equal(rows[layout.mask], values[layout.mask])
    np.testing.assert_array_equal(rows[~layout.mask], 0)


@pytest.mark.parametrize(
    ("rows", "batch", "size"),
    [(8, 1, 8), (1000, 100, 8), (1599, 100, 8), (1600, 100, 16), (3200, 100, 32), (10**6, 9, 32)],
)
def test_tiles_are_no_larger_than_what_an_example_has_on_average(rows, batch, size):
    assert tiles.tile_rows(rows, batch) == size
