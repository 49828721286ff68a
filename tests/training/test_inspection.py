"""The weights shown to people are those that the operators use."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kunlun_jax.batch import Jagged
from kunlun_jax.inspection import example_rows, seed_weights, window_weights
from kunlun_jax.nn.attention import WindowAttention
from kunlun_jax.nn.pooling import SeedAttention
from kunlun_jax.nn.rotary import RoteConfig
from pallas_kernels import seed_attention, window_attention
from tests.examples import build, random_jagged

DIM, HEADS, SEEDS, WINDOW, ROWS = 8, 2, 3, 2, 48
LENGTHS = (0, 5, 11, 1)
OPTIONS = {"heads": HEADS, "implementation": "xla", "dtype": jnp.float32}
SOME = [example for example, length in enumerate(LENGTHS) if length]


def events() -> Jagged:
    """Histories whose unused rows hold NaN: nothing may be read from there."""
    return random_jagged(LENGTHS, DIM, rows=ROWS, gaps=np.nan)


def ages() -> jnp.ndarray:
    return jnp.asarray(np.linspace(1e5, 1.0, ROWS, dtype=np.float32))


def seeds(norm_seeds: bool) -> SeedAttention:
    return build(lambda: SeedAttention(SEEDS, DIM, norm_seeds=norm_seeds, rngs=nnx.Rngs(0), **OPTIONS))


def window(size: int = WINDOW) -> WindowAttention:
    return build(lambda: WindowAttention(DIM, window=size, rote=RoteConfig(), rngs=nnx.Rngs(0), **OPTIONS))


def test_rows_of_an_example():
    packed = events()
    assert [example_rows(packed, example) for example in range(4)] == [
        slice(0, 0),
        slice(0, 5),
        slice(8, 19),
        slice(24, 25),
    ]


@pytest.mark.parametrize("norm_seeds", [True, False], ids=["hsp", "pma"])
def test_seed_weights_are_the_operators(norm_seeds: bool):
    attention, packed = seeds(norm_seeds), events()
    q, k, v = attention.queries_keys_values(packed)
    computed = seed_attention(q, k, v, packed.row_splits, packed.lengths, implementation="xla")
    for example in SOME:
        weights = seed_weights(attention, packed, example)
        assert weights.shape == (HEADS, SEEDS, LENGTHS[example])
        np.testing.assert_allclose(weights.sum(axis=-1), 1.0, atol=1e-6)
        by_weights = np.einsum("hst,thd->shd", weights, np.asarray(v)[example_rows(packed, example)])
        np.testing.assert_allclose(by_weights, computed[example], atol=1e-5)


def test_seeds_differ_in_what_they_take():
    weights = seed_weights(seeds(norm_seeds=True), events(), 2)
    assert np.ptp(weights, axis=1).max() > 0.01 and np.ptp(weights, axis=2).min() > 0.01


@pytest.mark.parametrize("size", [WINDOW, 100])
def test_window_weights_are_the_operators(size: int):
    attention, packed = window(size), events()
    q, k, v = attention.queries_keys_values(packed, ages())
    computed = window_attention(q, k, v, packed.row_splits, packed.lengths, window=(size, size), implementation="xla")
    for example in SOME:
        rows = example_rows(packed, example)
        weights = window_weights(attention, packed, ages(), example)
        assert weights.shape == (HEADS, LENGTHS[example], LENGTHS[example])
        np.testing.assert_allclose(weights.sum(axis=-1), 1.0, atol=1e-6)
        by_weights = np.einsum("hqk,khd->qhd", weights, np.asarray(v)[rows])
        np.testing.assert_allclose(by_weights, computed[rows], atol=1e-5)


def test_window_weights_are_zero_exactly_outside_the_window():
    weights = window_weights(window(), events(), ages(), 2)
    apart = np.abs(np.subtract.outer(np.arange(LENGTHS[2]), np.arange(LENGTHS[2])))
    np.testing.assert_array_equal(weights > 0, np.broadcast_to(apart <= WINDOW, weights.shape))


def test_an_example_without_events_has_no_weights():
    assert seed_weights(seeds(norm_seeds=True), events(), 0).shape == (HEADS, SEEDS, 0)
    assert window_weights(window(), events(), ages(), 0).shape == (HEADS, 0, 0)
