"""ROTE: what it keeps, what scores depend on, and both readings of time against plain Python."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from kunlun_jax.nn.rotary import RoteConfig, event_times, rotate
from tests.examples import random_jagged

ROWS, HEADS, DIM = 12, 2, 6


def operands():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(ROWS, HEADS, DIM)), jnp.float32) for _ in range(2))
    tau = jnp.asarray(np.sort(rng.uniform(0, 8, ROWS))[::-1].copy(), jnp.float32)
    return q, k, jnp.arange(ROWS, dtype=jnp.int32), tau


def scores(q, k):
    return jnp.einsum("qhd,khd->hqk", q, k)


def test_rotate_is_the_written_rotation_of_each_pair():
    q, _, positions, tau = operands()
    config = RoteConfig(base=50.0, time_base=7.0)
    expected = np.zeros((ROWS, HEADS, DIM))
    for t in range(ROWS):
        for i in range(DIM // 2):
            angle = t * 50.0 ** (-i / (DIM // 2)) + float(tau[t]) * 7.0 ** (-i / (DIM // 2))
            for h in range(HEADS):
                a, b = float(q[t, h, i]), float(q[t, h, i + DIM // 2])
                expected[t, h, i] = a * math.cos(angle) - b * math.sin(angle)
                expected[t, h, i + DIM // 2] = a * math.sin(angle) + b * math.cos(angle)
    np.testing.assert_allclose(rotate(q, positions, tau, config), expected, atol=2e-6)


def test_rotate_keeps_norms():
    q, _, positions, tau = operands()
    turned = rotate(q, positions, tau, RoteConfig())
    assert not np.allclose(turned, q, atol=0.1)
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(q, axis=-1), rtol=1e-6)


@pytest.mark.parametrize("shift", ["position", "tau"])
def test_scores_depend_on_differences_alone(shift):
    q, k, positions, tau = operands()
    config = RoteConfig()
    before = scores(rotate(q, positions, tau, config), rotate(k, positions, tau, config))
    moved = (positions + 5, tau) if shift == "position" else (positions, tau + 1.7)
    both = scores(rotate(q, *moved, config), rotate(k, *moved, config))
    one = scores(rotate(q, *moved, config), rotate(k, positions, tau, config))
    np.testing.assert_allclose(both, before, atol=1e-5)
    assert np.abs(one - before).max() > 0.1


@pytest.mark.parametrize("part", ["position", "time"])
def test_a_part_that_is_off_turns_nothing(part):
    q, _, positions, tau = operands()
    off = dataclasses.replace(RoteConfig(), **{part: False})
    both_off = RoteConfig(position=False, time=False)
    other = (positions, 0 * tau) if part == "time" else (0 * positions, tau)
    np.testing.assert_array_equal(rotate(q, positions, tau, off), rotate(q, *other, RoteConfig()))
    np.testing.assert_array_equal(rotate(q, positions, tau, both_off), q)


def test_rotate_keeps_bfloat16():
    q, _, positions, tau = operands()
    assert rotate(q.astype(jnp.bfloat16), positions, tau, RoteConfig()).dtype == jnp.bfloat16


@pytest.mark.parametrize("reading", ["age", "gap"])
def test_event_times_against_a_loop(reading):
    lengths = (3, 0, 9, 1)
    events = random_jagged(lengths, 1, rows=40)
    rng = np.random.default_rng(0)
    age = np.full(40, np.nan, np.float32)
    expected = {}
    for start, length in zip(np.asarray(events.row_splits)[:-1], lengths, strict=True):
        ages = np.sort(rng.uniform(1, 1e6, length).astype(np.float32))[::-1]
        age[start : start + length] = ages
        for i in range(length):
            dt = ages[i] if reading == "age" else (ages[i - 1] - ages[i] if i else 0.0)
            expected[start + i] = math.log(1 + dt / 120.0)
    tau = np.asarray(event_times(jnp.asarray(age), events.positions(), RoteConfig(reading=reading, t_scale=120.0)))
    np.testing.assert_allclose([tau[row] for row in expected], list(expected.values()), rtol=1e-5, atol=1e-5)
    if reading == "gap":
        first = np.asarray(events.row_splits)[:-1][np.asarray(lengths) > 0]
        np.testing.assert_array_equal(tau[first], 0.0)


def test_a_negative_time_in_a_gap_row_makes_no_nan():
    age = jnp.array([50.0, 10.0, -1e6, 0.0])
    for reading in ("age", "gap"):
        tau = event_times(age, jnp.arange(4, dtype=jnp.int32), RoteConfig(reading=reading))
        assert np.isfinite(tau).all()
