"""WindowAttention: the whole block against plain NumPy in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kunlun_jax.nn.attention import WindowAttention
from kunlun_jax.nn.rotary import RoteConfig
from tests.examples import build, random_jagged

DIM, HEADS, WINDOW = 8, 2, 2
LENGTHS = (0, 5, 11, 1)
ROTE = RoteConfig(t_scale=100.0)


def make(window: int = WINDOW, *, norm: bool = True) -> WindowAttention:
    options = {"norm": norm, "implementation": "reference", "dtype": jnp.float32}
    return build(lambda: WindowAttention(DIM, heads=HEADS, window=window, rote=ROTE, rngs=nnx.Rngs(0), **options))


def ages(rows: int) -> jax.Array:
    """Falling along the rows, hence along each history."""
    return jnp.asarray(np.sort(np.random.default_rng(0).uniform(1, 1e5, rows).astype(np.float32))[::-1].copy())


def block_by_hand(block: WindowAttention, events, age) -> dict[int, np.ndarray]:
    """Row -> output of each event, float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(block, nnx.Param)))
    width, half = DIM // HEADS, DIM // HEADS // 2

    def turn(x, t, tau):
        y = np.empty_like(x)
        for i in range(half):
            angle = t * block.rote.base ** (-i / half) + tau * block.rote.time_base ** (-i / half)
            a, b = x[:, i], x[:, i + half]
            y[:, i] = a * math.cos(angle) - b * math.sin(angle)
            y[:, i + half] = a * math.sin(angle) + b * math.cos(angle)
        return y

    out = {}
    for start, length in zip(np.asarray(events.row_splits)[:-1], np.asarray(events.lengths), strict=True):
        rows = range(start, start + length)
        q, k, v = [], [], []
        for t, row in enumerate(rows):
            s = np.asarray(events.values[row], np.float64)
            if block.norm is not None:
                s = (s - s.mean()) / math.sqrt(s.var() + 1e-5) * p["norm"]["scale"] + p["norm"]["bias"]
            heads = (s @ p["qkv"]["kernel"] + p["qkv"]["bias"]).reshape(3, HEADS, width)
            tau = math.log(1 + float(age[row]) / block.rote.t_scale)
            q.append(turn(heads[0], t, tau))
            k.append(turn(heads[1], t, tau))
            v.append(heads[2])
        for i, row in enumerate(rows):
            near = [j for j in range(length) if abs(i - j) <= block.window]
            o = np.zeros((HEADS, width))
            for h in range(HEADS):
                weights = np.exp([q[i][h] @ k[j][h] / math.sqrt(width) for j in near])
                o[h] = sum(w * v[j][h] for w, j in zip(weights / weights.sum(), near, strict=True))
            out[row] = np.asarray(events.values[row]) + o.reshape(-1) @ p["out"]["kernel"] + p["out"]["bias"]
    return out


@pytest.mark.parametrize("norm", [True, False])
def test_block_against_plain_numpy(norm):
    block = make(norm=norm)
    run = jax.jit(block)
    events, age = random_jagged(LENGTHS, DIM, rows=40), ages(40)
    expected = block_by_hand(block, events, age)
    assert len(expected) == sum(LENGTHS)
    y = np.asarray(run(events, age))
    np.testing.assert_allclose(y[list(expected)], list(expected.values()), atol=2e-5)


@pytest.mark.parametrize("distance", [WINDOW, WINDOW + 1])
@pytest.mark.parametrize("side", [-1, 1])
def test_window_is_inclusive_and_looks_both_ways(distance, side):
    block = make()
    run = jax.jit(block)
    events, age = random_jagged((11,), DIM, rows=16), ages(16)
    here = 5
    # Not a multiple of ones: the norm would take that away.
    changed = events.replace(events.values.at[here + side * distance, 0].add(3.0))
    moved = np.abs(run(changed, age)[here] - run(events, age)[here]).max() > 1e-4
    assert moved == (distance <= WINDOW)


def test_no_event_sees_another_example():
    block = make(window=50)
    run = jax.jit(block)
    events, age = random_jagged((8, 8), DIM, rows=16), ages(16)  # without a gap between them
    changed = events.replace(events.values.at[:8, 0].add(3.0))
    y, z = np.asarray(run(events, age)), np.asarray(run(changed, age))
    np.testing.assert_array_equal(y[8:], z[8:])
    assert np.abs(y[:8] - z[:8]).max() > 0.1


def test_rows_without_event_change_nothing_and_take_no_gradient():
    block = make()
    run = jax.jit(block)
    events, age = random_jagged(LENGTHS, DIM, rows=40), ages(40)
    mask = np.asarray(events.mask())
    junk = jnp.where(mask[:, None], events.values, 1e6)
    np.testing.assert_array_equal(run(events, age)[mask], run(events.replace(junk), age)[mask])
    gradient = jax.grad(lambda v: jnp.where(mask[:, None], run(events.replace(v), age), 0.0).sum())(junk)
    np.testing.assert_array_equal(gradient[~mask], 0.0)
    assert np.abs(gradient[mask]).min() > 0


def test_a_head_of_odd_width_is_refused():
    with pytest.raises(ValueError, match="dim is 6 and heads 2;"):
        WindowAttention(
            6, heads=2, window=1, rote=ROTE, implementation="reference", dtype=jnp.float32, rngs=nnx.Rngs(0)
        )
