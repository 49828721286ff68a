"""What a kernel streams in place of gaps: every tile holds the rows of its example, then zeros, and never NaN."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.mosaic import schedule, tails
from tests.pallas_kernels.operators import Layout

# Always as many examples and rows: what the operations are compiled for.
EXAMPLES, ROWS = 4, 4 * 384 + 8
SHAPES = st.lists(
    st.tuples(st.sampled_from([0, 1, 5, 8, 63, 64, 65, 128, 300]), st.sampled_from([0, 8, 80])),
    min_size=EXAMPLES,
    max_size=EXAMPLES,
)


def tiles(layout: Layout, array: np.ndarray, copied: np.ndarray, items, block: int):
    """Each streamed tile as the loader reads it, with its example and its first row there."""
    for item in items:
        count = -(-int(item[schedule.OTHER_COUNT]) // block)
        for j in range(count):
            row = int(item[schedule.OTHER_ROW]) + j * block
            example = int(np.searchsorted(layout.splits[1:], row, side="right"))
            source, start = array, row
            if j == count - 1 and item[schedule.TAIL] >= 0:
                source, start = copied, int(item[schedule.TAIL])
            assert start % 8 == 0 and start + block <= len(source)
            yield example, row - int(layout.splits[example]), source[start : start + block, 0, 0]


@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize("kind", ["whole", "window", "parts"])
@given(shapes=SHAPES, balance=st.booleans(), window=st.tuples(st.integers(0, 90), st.integers(0, 90)))
@settings(max_examples=15, deadline=None)
def test_every_tile_is_its_example_then_zeros(kind, block, shapes, balance, window):
    lengths, gaps = zip(*shapes, strict=True)
    layout = Layout(lengths, gaps=gaps, spare=ROWS - int(Layout(lengths, gaps=gaps).splits[-1]))
    held = np.where(layout.mask, np.arange(1, layout.rows + 1), np.nan).astype(np.float32)
    array, parts = held[:, None, None], 3 if kind == "parts" else 1
    ends = tails.Ends.of(*layout.offsets, block=block, starts=block if kind == "whole" else tails.ANY_START)
    side = schedule.packed(*layout.offsets, layout.rows)
    streamed = schedule.split(side, parts)
    work = schedule.work_list(
        schedule.dense(len(lengths) * parts, 8) if kind == "parts" else side,
        streamed,
        item_rows=64,
        balance=balance,
        window=window if kind == "window" else None,
        ends=ends.of_parts(parts),
    )
    copied, items = np.asarray(ends.copy(jnp.asarray(array))), np.asarray(work.items)[: int(work.used[0])]
    assert copied.shape == (len(lengths) * ends.rows, 1, 1)
    seen = 0
    for example, first, tile in tiles(layout, array, copied, items, block):
        own = held[layout.splits[example] :][: lengths[example]][first : first + block]
        np.testing.assert_array_equal(tile, np.pad(own, (0, block - len(own))))
        seen += 1
    assert seen == sum(-(-items[:, schedule.OTHER_COUNT] // block))


def test_whole_tiles_come_from_the_array():
    layout = Layout((128, 100, 32, 0))
    side = schedule.packed(*layout.offsets, layout.rows)
    ends = tails.Ends.of(*layout.offsets, block=32, starts=32)
    items = np.asarray(schedule.work_list(side, side, item_rows=128, balance=False, ends=ends).items)
    np.testing.assert_array_equal(items[:4, schedule.TAIL], [-1, 32, -1, -1])
    assert ends.rows == 32


@pytest.mark.parametrize(("lengths", "small"), [((300, 170), True), ((30, 17), False)])
def test_tails_are_used_where_they_are_smaller_than_the_array(lengths, small):
    """Otherwise the array is copied, with zeros in its gaps."""
    layout = Layout(lengths)
    x, y = (layout.random(np.random.default_rng(seed), jnp.bfloat16) for seed in (0, 1))
    ready = tails.guarded(x, y, *layout.offsets, block=64, starts=64)
    assert (ready.ends is not None) == bool(ready.tails) == small
    for given_, array in zip((x, y), ready.arrays, strict=True):
        if small:
            assert array is given_
        else:
            np.testing.assert_array_equal(array, jnp.where(layout.mask[:, None, None], given_, 0))
    for tail in ready.tails:
        assert tail.shape == (2 * 64, *x.shape[1:]) and tail.dtype == x.dtype and np.isfinite(tail).all()
