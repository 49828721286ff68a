"""gdpa with jagged keys over drawn lengths: empty, single, off the tile, and one giant among tiny ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pallas_kernels import gdpa
from pallas_kernels.operators.gdpa import xla_jagged
from pallas_kernels.xla import tiles
from tests.pallas_kernels.operators import Layout

BATCH, ROWS = 4, 320
# Every drawn case fits the same capacity, so that all of them share one compilation.
EVEN = st.lists(st.sampled_from((0, 1, 7, 8, 9, 31, 32, 33, 64, 70)), min_size=BATCH, max_size=BATCH)
GIANT = st.permutations((250, 0, 1, 9))
LENGTHS = st.one_of(EVEN, GIANT).map(tuple)


@functools.cache
def compiled(implementation):
    def run(operands, offsets, cotangent):
        def function(q, k, v):
            return gdpa(q, k, v, *offsets, activation="silu", pre_scale=0.7, implementation=implementation)

        out, pullback = jax.vjp(function, *operands)
        return (out, *pullback(cotangent))

    return jax.jit(run)


def filled(lengths):
    layout = Layout(lengths, spare=0)
    return Layout(lengths, spare=ROWS - layout.rows)


def assert_agree(layout, keys):
    with jax.enable_x64(True):
        rng = np.random.default_rng(20)
        operands = tuple(x.random(rng, jnp.float64) for x in (layout, keys, keys))
        offsets, cotangent = (*layout.offsets, *keys.offsets), layout.random(rng, jnp.float64)
        actual, expected = (compiled(name)(operands, offsets, cotangent) for name in ("xla", "reference"))
    for x, y, packed in zip(actual, expected, (layout, layout, keys, keys), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-12 * max(1.0, float(np.abs(y).max())))
        np.testing.assert_array_equal(x[~packed.mask], 0)


@settings(max_examples=25, deadline=None, derandomize=True)
@example((0, 0, 0, 0), (70, 0, 1, 33))
@example((250, 0, 1, 9), (0, 250, 9, 1))
@given(LENGTHS, LENGTHS)
def test_xla_agrees_with_the_reference(lengths, key_lengths):
    assert_agree(filled(lengths), filled(key_lengths))


def test_key_tiles_wider_than_query_tiles():
    layout, keys = Layout((5, 300, 0), spare=0), Layout((0, 700, 261), spare=3)
    assert tiles.tile_rows(layout.rows, 3) == 32 and xla_jagged._key_tile_rows(keys.rows, 3) == 64
    assert_agree(layout, keys)


@pytest.mark.parametrize(
    ("rows", "batch", "size"), [(72, 3, 16), (1023, 4, 32), (1024, 4, 64), (2048, 4, 128), (10**6, 4, 128)]
)
def test_a_key_tile_is_wide_where_examples_have_several(rows, batch, size):
    assert xla_jagged._key_tile_rows(rows, batch) == size
