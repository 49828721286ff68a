"""`experiments.random_batches`: how long histories are, and the same batch in rectangles."""

import jax
import numpy as np
import pytest

from experiments.random_batches import in_rectangles, longest_history, random_batch
from kunlun_jax.data.sets.synthetic import SyntheticConfig, SyntheticSource

SCHEMA = SyntheticSource(SyntheticConfig()).schema


def test_full_histories_are_full_and_jagged_ones_are_like_kuairand():
    full, jagged = (random_batch(SCHEMA, 256, 200, lengths) for lengths in ("full", "jagged"))
    for event in SCHEMA.events:
        assert (full.events[event.name].lengths == 200).all()
        lengths = np.asarray(jagged.events[event.name].lengths)
        assert 0.05 < lengths.mean() / 200 < 0.1 and lengths.min() == 0 and lengths.max() > 60
        ages = jagged.events[event.name].values["age"]
        start = int(jagged.events[event.name].row_splits[int(lengths.argmax())])
        assert (np.diff(ages[start : start + lengths.max()]) <= 0).all()


def test_rectangles_hold_the_same_events_and_zeros():
    packed = random_batch(SCHEMA, 6, 50, "jagged")
    longest = longest_history(packed)
    assert longest % 8 == 0 and 0 <= longest - max(np.max(x.lengths) for x in packed.events.values()) < 8
    padded = in_rectangles(packed, longest)
    np.testing.assert_array_equal(padded.categorical, packed.categorical)
    for name, before in packed.events.items():
        after = padded.events[name]
        assert after.rows == 6 * longest and after.row_splits.dtype == np.int32
        for example, (start, length) in enumerate(zip(before.row_splits, before.lengths, strict=False)):
            rows = slice(example * longest, (example + 1) * longest)
            for x, y in zip(jax.tree.leaves(before.values), jax.tree.leaves(after.values), strict=True):
                assert x.dtype == y.dtype
                np.testing.assert_array_equal(y[rows][:length], x[start : start + length])
                assert not np.any(y[rows][length:])


def test_rectangles_that_are_too_short_are_refused():
    packed = random_batch(SCHEMA, 2, 20, "full")
    with pytest.raises(ValueError, match="longest is 16; it must be a multiple of 8 and at least 24"):
        in_rectangles(packed, 16)
