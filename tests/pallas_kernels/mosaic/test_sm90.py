"""The Hopper kernel beside the contract: heads in groups, what it refuses, and which tiles a window reaches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.mosaic import schedule, sm90, target, tuning
from pallas_kernels.mosaic.config import Sm90Config
from pallas_kernels.mosaic.score import pointwise, softmax
from pallas_kernels.mosaic.streaming import STAGED, tiles_in_reach
from pallas_kernels.mosaic.tuning import Key
from pallas_kernels.operators.window_attention import mosaic as window_mosaic
from pallas_kernels.operators.window_attention import reference
from tests.pallas_kernels.mosaic.conftest import ON_GPU
from tests.pallas_kernels.operators import Layout, with_gradients

ROWS, DIM = 128, 32


@pytest.mark.parametrize("scale", [-0.1, pytest.param(DIM**-0.5, marks=pytest.mark.slow)])
@pytest.mark.skipif(ON_GPU, reason="the chip need not be a Hopper; interpreted on the CPU")
def test_heads_of_queries_share_heads_of_keys(capfd, scale):
    """Two heads of keys for four of queries: as with keys repeated for each, and the gradients of a group summed.

    A negative scale turns the largest score into the smallest.
    """
    layout, rng = Layout((70, 0, 9)), np.random.default_rng(0)
    window = (20, 5)

    def packed(heads):
        values = rng.standard_normal((layout.rows, heads, DIM))
        values[~layout.mask] = np.nan
        return jnp.asarray(values, jnp.bfloat16)

    operands, cotangent = (packed(4), packed(2), packed(2)), packed(4)

    def call(layout, operands):
        return window_mosaic.window_attention(*operands, *layout.offsets, window=window, scale=scale)

    def repeated(layout, operands, upcast=False):
        q, k, v = operands
        k, v = (jnp.repeat(x, 2, axis=1) for x in (k, v))
        return reference.window_attention(q, k, v, *layout.offsets, window=window, scale=scale, upcast=upcast)

    wide = tuple(x.astype(jnp.float32) for x in operands)
    with target.interpret("sm90", processors=2, detect_races=True):
        actual = with_gradients(call, layout, operands, cotangent)
    plain = with_gradients(repeated, layout, operands, cotangent)
    exact = with_gradients(repeated, layout, wide, cotangent.astype(jnp.float32))
    for x, y, z, factor in zip(actual, plain, exact, (2, 5, 5, 5), strict=True):
        x, y, z = (np.asarray(array, np.float32) for array in (x, y, z))
        assert x.shape == y.shape
        np.testing.assert_array_equal(x[~layout.mask], 0)
        x, y, z = (array[layout.mask] for array in (x, y, z))
        assert np.abs(x - z).max() <= factor * np.abs(y - z).max()
    printed = capfd.readouterr()
    assert "RACE DETECTED" not in printed.out + printed.err


def attend(heads=2, other_heads=2, config=None, score=None, **arguments):
    """A forward pass that is only traced; one example of `ROWS` rows."""
    config = config or Sm90Config(block=64)
    side = schedule.packed(jnp.array([0, ROWS]), jnp.array([ROWS]), ROWS)
    item_rows = config.units * config.run * sm90.TILE_ROWS
    work = schedule.work_list(side, side, item_rows=item_rows, balance=False)
    own, other = (jnp.zeros((ROWS, number, DIM), jnp.bfloat16) for number in (heads, other_heads))
    more = {"score": score or pointwise("relu", 1.0, 1.0), "sums": ("value",)} | arguments
    return sm90.attend((own,), (other, other), work, ragged=True, config=config, processors=1, **more)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"config": Sm90Config(block=256, stages=8)},
            "needs 278528 bytes of shared memory at head width 32",
        ),
        ({"heads": 3, "other_heads": 2}, "3 heads stay and 2 stream"),
        ({"config": Sm90Config(run=4), "window": (1, 1)}, "config.run=4 .*window"),
        ({"config": Sm90Config(run=4), "score": softmax(1.0)}, "config.run=4 .*score.online"),
        (
            {"config": Sm90Config(run=4), "statistics": (jnp.zeros((2, ROWS)),)},
            "config.run=4 .*statistics",
        ),
        (
            {"config": Sm90Config(block=48), "statistics": (jnp.zeros((2, ROWS)),), "sums": ("key", "value")},
            "config.block=48 .* 32",
        ),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        attend(**arguments)


@pytest.mark.parametrize("window", [(0, 0), (3, 100), (64, 1), (1000, 1000)])
@pytest.mark.parametrize("block", [16, 64])
def test_tiles_in_reach_are_those_with_an_allowed_column(window, block):
    rng = np.random.default_rng(1)
    for _ in range(50):
        length = int(rng.integers(1, 400))
        side = schedule.packed(jnp.array([0, 400]), jnp.array([length]), 400)
        work = schedule.work_list(side, side, item_rows=128, balance=False, window=window)
        listed = work.items[rng.integers(0, int(work.used[0]))]
        item = np.asarray(listed)
        for first in (0, 64):
            begin, end = tiles_in_reach(jnp.int32(first), 64, listed, window, block)
            row = np.arange(first, min(first + 64, item[schedule.COUNT]))[:, None]
            column = np.arange(item[schedule.OTHER_COUNT])[None, :]
            distance = column - row - item[schedule.SHIFT]
            columns = np.flatnonzero(((distance >= -window[0]) & (distance <= window[1])).any(axis=0))
            wanted = (columns[0] // block, columns[-1] // block + 1) if len(columns) else (0, 0)
            assert int(end) - int(begin) == wanted[1] - wanted[0]
            assert not len(columns) or int(begin) == wanted[0]
            assert 0 <= int(begin) <= int(end) <= -(-item[schedule.OTHER_COUNT] // block)


@pytest.mark.parametrize("pass_", tuning.PASSES)
@pytest.mark.parametrize("dim", [32, 64, 128])
@pytest.mark.parametrize("keys", [64, 201, 256, tuning.JAGGED])
def test_defaults_and_candidates_of_a_softmax_fit(pass_, dim, keys):
    key = Key(pass_, dim, keys, "softmax")
    operators = ("window_attention",) if keys == tuning.JAGGED else ("window_attention", "seed_attention")
    for operator in operators:
        assert tuning.fits(key, tuning.default(key, "sm90", operator))
    for config in tuning.candidates(key, "sm90"):
        assert tuning.fits(key, config) and config.run == 1


def test_shared_memory_of_statistics_and_wide_results():
    """By hand: two units, tiles of 64 rows, d 32; dq has two statistics that stay, dk with dv two that stream."""
    config = Sm90Config(block=128, stages=2)
    plain, wide = (
        sm90.shared_memory(32, 2, backward=False, outputs=1, config=config, out_itemsize=size) for size in (2, 4)
    )
    assert plain == (2 * 64 + 2 * 2 * 128 + 2 * 64) * 32 * 2 and wide - plain == 2 * 64 * 32 * 2
    for backward, outputs, numbers in ((False, 1, 2 * 2 * STAGED), (True, 1, 2 * 2 * 64), (True, 2, 2 * 2 * 128)):
        used = [
            sm90.shared_memory(32, 2, backward=backward, outputs=outputs, config=config, softmax=softmax)
            for softmax in (False, True)
        ]
        assert used[1] - used[0] == 4 * numbers


def test_results_have_the_rows_and_dtype_asked_for():
    """Log-sum-exps are always float32; the heads are those of the queries, which are more than those of the keys."""
    out, log_sum = jax.eval_shape(lambda: attend(heads=4, score=softmax(0.1), out_rows=256, out_dtype=jnp.float32))
    assert (out.shape, out.dtype) == ((256, 4, DIM), jnp.float32)
    assert (log_sum.shape, log_sum.dtype) == ((4, 256), jnp.float32)
