"""Time and memory of the XLA implementations grow with the rows, and not with their square: counted, not timed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import gdpa, seed_attention, window_attention
from pallas_kernels.jagged import aligned
from pallas_kernels.operators.gdpa import xla_jagged
from pallas_kernels.operators.window_attention import xla as window_xla
from pallas_kernels.xla import tiles

HEADS, DIM, KEYS, SEEDS = 2, 8, 16, 8
SIZES = (4096, 8192, 16384)


def temporary_bytes(function, operands, splits, lengths):
    """Temporary memory of the compiled forward and backward pass."""

    def run(operands, splits, lengths, cotangent):
        return jax.vjp(lambda *operands: function(*operands, splits, lengths), *operands)[1](cotangent)

    out = jax.eval_shape(function, *operands, splits, lengths)
    compiled = jax.jit(run).lower(operands, splits, lengths, out).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def operands_of(operator, rows, batch):
    packed = jax.ShapeDtypeStruct((rows, HEADS, DIM), jnp.float32)
    dense = jax.ShapeDtypeStruct((batch, KEYS, HEADS, DIM), jnp.float32)
    seeds = jax.ShapeDtypeStruct((SEEDS, HEADS, DIM), jnp.float32)
    return {"gdpa": (packed, dense, dense), "seed": (seeds, packed, packed)}.get(operator, (packed,) * 3)


FUNCTIONS = {
    "gdpa": gdpa,
    "gdpa-jagged": lambda *a: gdpa(*a, *a[-2:]),
    "window": lambda *a: window_attention(*a, window=(50, 50)),
    "seed": seed_attention,
}


@pytest.mark.parametrize("operator", FUNCTIONS)
def test_memory_grows_linearly_with_rows_and_batch(operator):
    used = []
    for rows in SIZES:
        batch = rows // 64
        splits, lengths = (jax.ShapeDtypeStruct((n,), jnp.int32) for n in (batch + 1, batch))
        used.append(temporary_bytes(FUNCTIONS[operator], operands_of(operator, rows, batch), splits, lengths))
    first, second = used[1] - used[0], used[2] - used[1]
    assert first > 0
    assert second <= 2.1 * first
    # A few copies of the operands in float32, far from one score for each pair of rows, or F * T * B.
    assert used[2] < 40 * SIZES[2] * HEADS * DIM * 4


def packed(lengths):
    """Rows of these lengths, as a shape, and where each example starts."""
    splits = jnp.asarray(np.concatenate([[0], np.cumsum(aligned(np.asarray(lengths)))]), jnp.int32)
    return jax.ShapeDtypeStruct((int(splits[-1]), HEADS, DIM), jnp.float32), splits


def tile_pairs(length, window):
    """Pairs of tiles that a call over one sequence of `length` rows visits."""
    return visited(np.array([length]), window)


def visited(lengths, window):
    """Pairs of tiles that a call over sequences of these lengths visits."""
    lengths = jnp.asarray(lengths, jnp.int32)
    q, splits = packed(lengths)
    return int(jax.jit(lambda *offsets: window_xla._plan(window, q, *offsets)[2].numbering.number)(splits, lengths))


def test_a_window_visits_linearly_many_pairs_of_tiles():
    tile, window = tiles.tile_rows(SIZES[0], 1), 50
    counts = [tile_pairs(length, (window, window)) for length in SIZES]
    assert counts[1] - counts[0] == (counts[2] - counts[1]) // 2
    assert counts[2] <= SIZES[2] // tile * (2 * -(-window // tile) + 1)
    assert tile_pairs(4096, (0, 0)) == 4096 // tile
    assert tile_pairs(640, (10**6, 10**6)) == (640 // tile) ** 2


def test_a_wide_window_costs_no_more_than_the_sequences():
    assert visited(np.full(32, 40), (10**6, 10**6)) == 32 * 4


def jagged_pairs(lengths, key_lengths):
    """Pairs of tiles that gdpa with jagged keys visits, and the rows of its query tiles and key tiles."""
    (q, splits), (k, key_splits) = packed(lengths), packed(key_lengths)
    offsets = (splits, jnp.asarray(lengths, jnp.int32), key_splits, jnp.asarray(key_lengths, jnp.int32))
    size, key_size, _, plan = jax.jit(lambda *offsets: xla_jagged._plan(q, k, *offsets))(*offsets)
    return int(plan.numbering.number), int(size), int(key_size)


def test_jagged_keys_visit_the_pairs_of_tiles_of_one_example():
    # One giant among tiny ones: the pairs are those of each example, not examples times the longest.
    lengths, key_lengths = np.array([2000, *[3] * 200]), np.array([*[1] * 200, 4000])
    count, size, key_size = jagged_pairs(lengths, key_lengths)
    assert count == -(-2000 // size) + 199 + -(-4000 // key_size)
    # Queries without keys cost a pair for each of their tiles, keys without queries none.
    count, size, _ = jagged_pairs(np.array([640, 0]), np.array([0, 640]))
    assert count == 640 // size
    assert jagged_pairs(np.full(32, 40), np.full(32, 70))[0] == 32 * 2 * 3


def test_memory_of_jagged_keys_does_not_grow_with_the_pairs():
    """A few long examples have as many pairs as rows squared; the memory is that of the rows all the same."""
    used, batch = [], 4
    splits, lengths = (jax.ShapeDtypeStruct((n,), jnp.int32) for n in (batch + 1, batch))
    for rows in SIZES:
        operands = operands_of("gdpa-jagged", rows, batch)
        used.append(temporary_bytes(FUNCTIONS["gdpa-jagged"], operands, splits, lengths))
    assert 0 < used[2] - used[1] <= 2.1 * (used[1] - used[0])
    assert used[2] < 40 * SIZES[2] * HEADS * DIM * 4 < SIZES[2] ** 2
