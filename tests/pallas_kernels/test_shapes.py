"""The counted cost, against masks counted one by one and the formulas written out."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.operators.gdpa import shapes as gdpa_shapes
from pallas_kernels.operators.seed_attention import shapes as seed_shapes
from pallas_kernels.operators.window_attention import shapes as window_shapes
from pallas_kernels.operators.window_attention.reference import window_mask
from tests.pallas_kernels.operators import Layout

LENGTHS = np.array([0, 1, 7, 40, 12, 0])


@pytest.mark.parametrize("window", [(0, 0), (3, 1), (0, 7), (12, 12), (10**6, 10**6), (10**6, 0)], ids=str)
def test_window_pairs_are_those_of_the_mask(window):
    layout = Layout(tuple(int(n) for n in LENGTHS))
    brute = sum(-window[0] <= j - i <= window[1] for n in layout.lengths for i in range(n) for j in range(n))
    assert window_shapes.pairs(LENGTHS, window) == brute
    assert int(jnp.sum(window_mask(*layout.offsets, layout.rows, window))) == brute


def test_costs():
    gdpa = gdpa_shapes.cost(LENGTHS, keys=16, heads=2, dim=8)
    assert gdpa.pairs == 60 * 16
    assert gdpa.forward_flops == 4 * 2 * 8 * 60 * 16 and gdpa.backward_flops == 10 * 2 * 8 * 60 * 16
    assert gdpa.forward_bytes == 2 * 2 * 8 * (2 * 60 + 2 * 96) and gdpa.backward_bytes == 2 * 2 * 8 * (3 * 60 + 4 * 96)

    keys = np.array([3, 0, 7, 2, 0, 5], np.int32)
    jagged = gdpa_shapes.cost(LENGTHS, keys=keys, heads=2, dim=8)
    assert jagged.pairs == sum(n * m for n, m in zip(LENGTHS, keys, strict=True)) == 129
    assert jagged.forward_bytes == 2 * 2 * 8 * (2 * 60 + 2 * 17)
    assert jagged.backward_bytes == 2 * 2 * 8 * (3 * 60 + 4 * 17)
    own = gdpa_shapes.cost(LENGTHS, keys=None, heads=2, dim=8)
    assert own == gdpa_shapes.cost(LENGTHS, keys=LENGTHS, heads=2, dim=8)
    assert own.pairs == 1 + 7**2 + 40**2 + 12**2

    seed = seed_shapes.cost(LENGTHS, seeds=3, heads=2, dim=8)
    assert (seed.pairs, seed.forward_flops) == (180, 4 * 2 * 8 * 180)
    assert seed.forward_bytes == 2 * 2 * 8 * (3 + 2 * 60 + 18) + 4 * 2 * 18

    full = window_shapes.cost(np.array([32]), window=(32, 32), heads=1, dim=8, itemsize=4)
    assert (full.pairs, full.backward_flops) == (1024, 10 * 8 * 1024)
    assert full.forward_bytes == 4 * 8 * 4 * 32 + 4 * 32


def test_production_shapes_do_not_overflow():
    shape = window_shapes.Shape(4, 32768, False, (1024, 0), heads=16)
    assert shape in window_shapes.SHAPES
    lengths = np.full(shape.batch, shape.max_length, np.int32)
    pairs = 4 * (1025 * 32768 - 1024 * 1025 // 2)
    assert window_shapes.cost(lengths, window=shape.window, heads=16, dim=128).forward_flops == 4 * 16 * 128 * pairs
    assert len(set(gdpa_shapes.SHAPES)) == len(gdpa_shapes.SHAPES) == 30
    own = [shape for shape in gdpa_shapes.SHAPES if shape.keys is None]
    assert {(shape.max_length, shape.sparsity) for shape in own} == {
        (length, sparsity) for length in (256, 512, 1024, 2048) for sparsity in (1.0, 0.5)
    }
    full = np.full(200_000, 2048, np.int32)
    assert gdpa_shapes.cost(full, keys=None, heads=4, dim=128).pairs == 200_000 * 2048**2
    assert len(set(seed_shapes.SHAPES)) == len(seed_shapes.SHAPES) == 9
