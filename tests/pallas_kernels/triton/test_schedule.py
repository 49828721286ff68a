"""The items of a Triton launch: every row once, and every row with the rows of its example."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.mosaic.schedule import dense, packed
from pallas_kernels.triton import schedule
from tests.pallas_kernels.operators import LENGTHS, Layout


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("item_rows", [16, 64])
@pytest.mark.parametrize("layout", [Layout(LENGTHS), Layout((0, 0)), Layout((5, 17), spare=3), Layout((300,), spare=0)])
def test_items_cover_every_row_once(layout, item_rows, balance):
    keys = layout.others
    own, other = (packed(*x.offsets, x.rows) for x in (layout, keys))
    items = np.asarray(schedule.items(own, other, item_rows=item_rows, balance=balance))
    assert items.shape == (schedule.capacity(own, item_rows), schedule.FIELDS) and items.dtype == np.int32
    writes, holds = np.zeros(layout.rows, int), np.zeros(layout.rows, bool)
    example = np.searchsorted(layout.splits, np.arange(layout.rows), side="right") - 1
    streamed = []
    for row, count, extent, position, other_row, other_count, *_ in items:
        assert 0 <= count <= extent <= item_rows
        writes[row : row + extent] += 1
        holds[row : row + count] = True
        if count:
            owner = example[row]
            assert len(set(example[row : row + count])) == 1
            assert position == row - layout.splits[owner]
            assert (other_row, other_count) == (keys.splits[owner], keys.lengths[owner])
            streamed.append(other_count)
        else:
            assert other_count == 0
    np.testing.assert_array_equal(writes, 1)
    np.testing.assert_array_equal(holds, layout.mask)
    if balance:
        assert streamed == sorted(streamed, reverse=True)


def test_dense_rows_of_any_number():
    own, other = dense(3, 5), packed(jnp.array([0, 8, 8, 24], jnp.int32), jnp.array([7, 0, 16], jnp.int32), 30)
    items = np.asarray(schedule.items(own, other, item_rows=4, balance=False))
    used = items[items[:, 2] > 0]
    np.testing.assert_array_equal(used[:, 0], [0, 4, 5, 9, 10, 14])
    np.testing.assert_array_equal(used[:, 1], [4, 1, 4, 1, 4, 1])
    np.testing.assert_array_equal(used[:, 5], [7, 7, 0, 0, 16, 16])
