"""From packed rows to padded ones."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from kunlun_jax.torch_reference.batch import from_packed, pad
from kunlun_jax.torch_reference.system import weighted_loss
from kunlun_jax.training import step
from tests.examples import BATCH, CONTEXTS, SCHEMA, VIEWS, random_batch, random_jagged, random_rows, spoil_gaps


def test_every_event_stands_where_it_belongs_and_gaps_stay_behind():
    rows, padded = random_rows(), from_packed(spoil_gaps(random_batch()))
    request = rows.request_time_ms
    for name, lengths in (("view", VIEWS), ("context", CONTEXTS)):
        events, raw = padded.events[name], rows.events[name]
        assert events.mask.shape == (BATCH, max(lengths)) and events.ids.dtype == torch.int64
        for b in range(BATCH):
            length = lengths[b] if b < len(lengths) else 0
            assert events.mask[b].tolist() == [True] * length + [False] * (max(lengths) - length)
            if length:
                of = slice(raw.splits[b], raw.splits[b + 1])
                np.testing.assert_array_equal(events.ids[b, :length], raw.ids[of])
                np.testing.assert_array_equal(events.dense[b, :length], raw.dense[of])
                age = ((request[b] - raw.time_ms[of]) / 1000).astype(np.float32)
                np.testing.assert_array_equal(events.age[b, :length], age)
            for values in (events.ids, events.dense, events.age):
                assert not values[b, length:].any()  # NaN would be true
    tags = padded.multi_valued["tags"]
    assert tags.mask.sum(1).tolist() == [0, 3, 2, 1, 0, 3, 0]
    np.testing.assert_array_equal(tags.ids[tags.mask], rows.multi_valued["tags"].values)
    for field in ("categorical", "labels", "dense"):
        np.testing.assert_array_equal(getattr(padded, field)[: len(VIEWS)], getattr(rows, field))
    assert padded.weights.tolist() == [1.0] * len(VIEWS) + [0.0]
    assert set(padded.events) == {event.name for event in SCHEMA.events}


def test_length_and_dtype_can_be_asked_for():
    padded = from_packed(random_batch(), dtype=torch.float64, time=20)
    assert {events.age.shape for events in padded.events.values()} == {(BATCH, 20)}
    assert {x.dtype for x in (padded.dense, padded.labels, padded.events["view"].dense)} == {torch.float64}


def test_a_history_that_does_not_fit():
    with pytest.raises(ValueError, match="view: an example has 13 rows; pad to that many, not to time=12"):
        from_packed(random_batch(), time=12)


def test_pad_leaves_nan_in_gaps_behind():
    packed = random_jagged((2, 0, 3), 4, rows=32, gaps=np.nan)
    padded = pad(packed, packed.values)
    assert padded.shape == (3, 3, 4) and torch.isfinite(padded).all()
    np.testing.assert_array_equal(padded[2], packed.values[8:11])
    assert not padded[1].any() and not padded[0, 2].any()


def test_the_twins_loss_leaves_out_missing_labels_too():
    rng = np.random.default_rng(0)
    batch = random_batch()
    labels = np.asarray(batch.labels).copy()
    labels[[0, 3, 4], 1] = np.nan
    logits = rng.normal(size=labels.shape).astype(np.float32)
    weights = rng.random(BATCH).astype(np.float32)
    for given in (labels, np.nan_to_num(labels)):
        ours = dataclasses.replace(batch, labels=given, weights=weights)
        theirs = weighted_loss(torch.from_numpy(logits), from_packed(ours))
        assert float(theirs) == pytest.approx(float(step.weighted_loss(jnp.asarray(logits), ours)), rel=1e-6)
