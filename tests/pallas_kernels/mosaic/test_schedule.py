"""The work list: every row written once, every item with its own example's streamed rows, the longest first."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import jagged
from pallas_kernels.mosaic import schedule

LENGTHS = st.lists(st.sampled_from([0, 1, 5, 8, 63, 64, 65, 128, 300]), min_size=1, max_size=6)


def packed(lengths, spare):
    splits = np.concatenate([[0], np.cumsum(jagged.aligned(np.array(lengths)))]).astype(np.int32)
    rows = int(splits[-1]) + spare
    return schedule.packed(jnp.asarray(splits), jnp.asarray(lengths, jnp.int32), rows), splits, rows


@pytest.mark.parametrize("item_rows", [64, 128, 512])
@given(lengths=LENGTHS, spare=st.sampled_from([0, 8, 200]), balance=st.booleans(), data=st.data())
@settings(max_examples=15, deadline=None)
def test_every_row_is_written_once_against_its_own_example(item_rows, lengths, spare, balance, data):
    others = data.draw(st.lists(st.integers(0, 40), min_size=len(lengths), max_size=len(lengths)))
    side, splits, rows = packed(lengths, spare)
    other, other_splits, _ = packed(others, 16)
    work = schedule.work_list(side, other, item_rows=item_rows, balance=balance)
    used = int(work.used[0])
    assert used <= work.items.shape[0] == schedule.capacity(side, item_rows)
    written, held = np.zeros(rows, int), np.zeros(rows, int)
    streamed = []
    for row, count, extent, other_row, other_count, shift, out_row, second_row, tail in np.asarray(work.items)[
        :used
    ].tolist():
        assert row % 8 == extent % 8 == 0 and 0 < extent <= item_rows and 0 <= count <= extent
        assert shift == 0 and out_row == row and second_row == other_row and tail == -1
        written[row : row + extent] += 1
        held[row : row + count] += 1
        example = int(np.searchsorted(splits[1:], row, side="right"))
        expected = (int(other_splits[example]), others[example]) if example < len(lengths) and count else None
        if count:
            assert (other_row, other_count) == expected
        else:
            assert other_count == 0
        streamed.append((example < len(lengths) and others[example]) or 0)
    np.testing.assert_array_equal(written, 1)
    mask = np.zeros(rows, int)
    for start, length in zip(splits, lengths, strict=False):
        mask[start : start + length] = 1
    np.testing.assert_array_equal(held, mask)
    if balance:
        assert streamed == sorted(streamed, reverse=True)


@pytest.mark.parametrize("item_rows", [64, 128])
@given(lengths=LENGTHS, window=st.tuples(st.sampled_from([0, 1, 7, 100, 10**9]), st.sampled_from([0, 3, 64, 10**9])))
@settings(max_examples=15, deadline=None)
def test_a_window_streams_what_it_reaches(item_rows, lengths, window):
    """From the window of the first row to that of the last, both inclusive, and at most seven rows more in front."""
    side, splits, _ = packed(lengths, 24)
    work = schedule.work_list(side, side, item_rows=item_rows, balance=True, window=window)
    below, above = window
    for row, count, _, other_row, other_count, shift, *_ in np.asarray(work.items)[: int(work.used[0])].tolist():
        example = int(np.searchsorted(splits[1:], row, side="right"))
        if not count:
            assert other_count == 0
            continue
        first = row - int(splits[example])
        low = other_row - int(splits[example])
        assert other_row % 8 == 0 and shift == first - low
        assert max(first - below, 0) - 8 < low <= max(first - below, 0)
        assert low + other_count == min(first + count + above, lengths[example])


def test_shared_queries_point_into_one_copy():
    queries, copies = 16, 3
    side = schedule.dense(6, queries)
    work = schedule.work_list(side, side, item_rows=8, balance=False)
    for column in (schedule.ROW, schedule.OTHER_ROW):
        shared = schedule.share_queries(work, queries, copies=copies, of=column)
        row, kept = np.asarray(shared.items)[:, column], np.asarray(work.items)[:, column]
        np.testing.assert_array_equal(row, [r // (copies * queries) * queries + r % queries for r in kept.tolist()])
        second = {schedule.ROW: schedule.OUT_ROW, schedule.OTHER_ROW: schedule.OTHER_SECOND_ROW}[column]
        np.testing.assert_array_equal(np.asarray(shared.items)[:, second], kept)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_parts_hold_every_row_once(parts):
    lengths = [0, 1, 8, 63, 300]
    side, splits, rows = packed(lengths, 24)
    cut = schedule.split(side, parts)
    held = np.zeros(rows, int)
    for number, (start, length) in enumerate(zip(np.asarray(cut.start), np.asarray(cut.length), strict=True)):
        assert start % 8 == 0
        held[start : start + length] += 1
        if length:
            assert splits[number // parts] <= start < splits[number // parts] + lengths[number // parts]
    mask = np.zeros(rows, int)
    for start, length in zip(splits, lengths, strict=False):
        mask[start : start + length] = 1
    np.testing.assert_array_equal(held, mask)


def test_dealing_in_turns_is_balanced():
    """Items dealt one by one, the longest first: no block has more than one longest item above another."""
    lengths = np.random.default_rng(0).integers(1, 2000, 100)
    side, _, _ = packed(lengths, 0)
    work = schedule.work_list(side, side, item_rows=128, balance=True)
    counts = np.asarray(work.items)[: int(work.used[0]), schedule.OTHER_COUNT]
    blocks = [counts[block::13].sum() for block in range(13)]
    assert max(blocks) - min(blocks) <= counts.max()


def test_dense_side():
    side = schedule.dense(3, 24)
    assert side.rows == 72
    np.testing.assert_array_equal(side.start, [0, 24, 48])
    work = schedule.work_list(side, side, item_rows=64, balance=False)
    assert int(work.used[0]) == 3 and np.asarray(work.items)[:3, schedule.COUNT].tolist() == [24, 24, 24]
