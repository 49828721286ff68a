"""Packed sequences cut and joined, against lists of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kunlun_jax.batch import Jagged
from kunlun_jax.nn.sequence import append, first_rows, last_rows, merge, no_rows, prepend, spread, tail, tail_as
from tests.examples import random_jagged

LENGTHS = (0, 5, 8, 1, 0, 13)
BATCH, DIM = len(LENGTHS), 3


def lists(events: Jagged, values=None) -> list[np.ndarray]:
    """The rows of each example."""
    values = np.asarray(events.values if values is None else values)
    starts = np.asarray(events.row_splits)[:-1]
    return [values[start : start + n] for start, n in zip(starts, np.asarray(events.lengths), strict=True)]


def assert_packed(events: Jagged) -> None:
    """Starts on multiples of 8, every example inside, and nothing but zeros where there is no event."""
    splits, lengths = np.asarray(events.row_splits), np.asarray(events.lengths)
    assert splits.dtype == lengths.dtype == np.int32
    assert (splits % 8 == 0).all() and (np.diff(splits) >= lengths).all() and splits[-1] <= events.rows
    assert not np.asarray(events.values)[~np.asarray(events.mask())].any()


@pytest.mark.parametrize("count", [1, 3, 8, 9])
@pytest.mark.parametrize("where", [prepend, append])
def test_tokens_in_front_and_behind(where, count):
    # No row of the capacity is to spare.
    events = random_jagged(LENGTHS, DIM, rows=40, gaps=np.nan)
    tokens = jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, count, DIM)), jnp.float32)
    joined = where(tokens, events) if where is prepend else where(events, tokens)
    assert_packed(joined)
    for found, row, s in zip(lists(joined), np.asarray(tokens), lists(events), strict=True):
        np.testing.assert_array_equal(found, np.concatenate([row, s] if where is prepend else [s, row]))
    assert joined.rows == 40 + BATCH * -(-count // 8) * 8


def test_tokens_behind_no_rows_at_all():
    empty = no_rows(BATCH, DIM, jnp.float32)
    tokens = jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, 1, DIM)), jnp.float32)
    joined = append(empty, tokens)
    assert_packed(joined)
    np.testing.assert_array_equal(np.concatenate(lists(joined)), tokens[:, 0])


@pytest.mark.parametrize("count", [1, 4])
def test_first_and_last_rows(count):
    events = random_jagged(LENGTHS, DIM, rows=48, gaps=np.nan)
    for first, last, s in zip(first_rows(events, count), last_rows(events, count), lists(events), strict=True):
        missing = np.zeros((max(count - len(s), 0), DIM))
        np.testing.assert_array_equal(first, np.concatenate([s[:count], missing]))
        np.testing.assert_array_equal(last, np.concatenate([missing, s[max(len(s) - count, 0) :]]))


def test_merge_is_a_stable_sort_by_age():
    events = {
        "b": random_jagged(LENGTHS, DIM, rows=40, gaps=np.nan),
        "a": random_jagged(LENGTHS[::-1], DIM, rows=64, seed=1, gaps=np.nan),
    }
    rng = np.random.default_rng(2)
    age = {}
    for name, s in events.items():
        a = np.zeros(s.rows, np.float32)
        for start, n in zip(np.asarray(s.row_splits)[:-1], np.asarray(s.lengths), strict=True):
            a[start : start + n] = np.sort(rng.integers(0, 6, n))[::-1]  # many are equal
        age[name] = jnp.asarray(a)
    merged, ages = jax.jit(merge)(events, age)
    assert_packed(merged)
    assert merged.rows == 104 and not np.asarray(ages)[~np.asarray(merged.mask())].any()
    found = zip(lists(merged), lists(merged, ages), strict=True)
    for example, (rows, row_ages) in enumerate(found):
        s = np.concatenate([lists(events[name])[example] for name in ("a", "b")])
        a = np.concatenate([lists(events[name], age[name])[example] for name in ("a", "b")])
        order = np.argsort(-a, kind="stable")
        np.testing.assert_array_equal(rows, s[order])
        np.testing.assert_array_equal(row_ages, a[order])


@pytest.mark.parametrize("count", [0, 1, 5, 8, 100])
def test_a_tail_and_the_way_back(count):
    # No row of the capacity is to spare.
    events = random_jagged(LENGTHS, DIM, rows=40, gaps=np.nan)
    last = tail(events, count)
    assert_packed(last)
    assert last.rows == min(40, BATCH * -(-count // 8) * 8)
    for found, s in zip(lists(last), lists(events), strict=True):
        np.testing.assert_array_equal(found, s[max(len(s) - count, 0) :])
    expected = np.zeros((40, DIM), np.float32)
    for start, s in zip(np.asarray(events.row_splits), lists(events), strict=False):
        expected[start + max(len(s) - count, 0) : start + len(s)] = s[max(len(s) - count, 0) :]
    np.testing.assert_array_equal(spread(last, events), expected)


@pytest.mark.parametrize("count", [0, 5, 100])
def test_the_tail_before_the_last_rows(count):
    events = random_jagged(LENGTHS, DIM, rows=40, gaps=np.nan)
    tokens = jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, 3, DIM)), jnp.float32)
    last = tail(events, count)
    found = tail_as(append(events, tokens), last, skip=3)
    assert_packed(found)
    np.testing.assert_array_equal(found.values, last.values)


def test_gradients_reach_every_event_and_token_once():
    events = random_jagged(LENGTHS, DIM, rows=40, gaps=np.nan)
    tokens = jnp.ones((BATCH, 2, DIM))

    def total(values, tokens):
        joined = append(prepend(tokens, events.replace(values)), tokens)
        return joined.values.sum() + last_rows(joined, 1).sum()

    by_values, by_tokens = jax.grad(total, argnums=(0, 1))(events.values, tokens)
    np.testing.assert_array_equal(by_values, np.broadcast_to(np.asarray(events.mask())[:, None], (40, DIM)))
    np.testing.assert_array_equal(by_tokens, np.broadcast_to([[[2.0], [3.0]]], tokens.shape))


def test_merge_of_nothing():
    with pytest.raises(ValueError, match="events is empty"):
        merge({}, {})
