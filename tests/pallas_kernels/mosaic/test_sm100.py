"""The streaming kernel of sm_100 by itself: block sizes, runs, and schedules that the operators do not come to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.jagged import zero_gaps
from pallas_kernels.mosaic import schedule, sm100, target
from pallas_kernels.mosaic.config import Sm100Config
from pallas_kernels.mosaic.score import pointwise

if jax.default_backend() == "gpu":
    pytest.skip("the tests of the operators run these kernels on the chip", allow_module_level=True)

PRE_SCALE, POST_SCALE = 0.9, 0.7
LENGTHS = np.array([0, 1, 70, 0, 136])
EXTENTS = -(-LENGTHS // 8) * 8
SPLITS = np.concatenate([[0], np.cumsum(EXTENTS)])
ROWS, KEYS, HEADS = int(SPLITS[-1]) + 16, 72, 1
HELD = np.zeros(ROWS, bool)
for _start, _length in zip(SPLITS, LENGTHS, strict=False):
    HELD[_start : _start + _length] = True

# Every block size and schedule at least once: units, runs, slots, the share of polynomials, shared units.
FORWARD = (
    ("dense", 64, Sm100Config(block=64, score_stages=2)),
    ("dense", 32, Sm100Config(block=96, units=1, run=3)),
    ("jagged", 64, Sm100Config(block=128, run=3, polynomial=3)),
)
DQ = (
    ("dense", 32, Sm100Config(block=64, units=2, polynomial=4)),
    ("jagged", 64, Sm100Config(block=64, units=1, run=3, stages=4, score_stages=2)),
    ("dense", 64, Sm100Config(block=128, units=1, warpgroups=2, polynomial=4)),
)
DKV = (
    ("dense", 64, Sm100Config(block=64, units=1, stages=3, score_stages=2, polynomial=4)),
    ("jagged", 32, Sm100Config(block=64, units=2, run=3, stages=4, stationary_stages=2)),
    ("jagged", 64, Sm100Config(block=64, units=1, warpgroups=2, run=3, stages=4, stationary_stages=2)),
)


@pytest.fixture(autouse=True)
def no_race(capfd):
    with target.interpret("sm100", processors=3, detect_races=True):
        yield
    printed = capfd.readouterr()
    assert "RACE DETECTED" not in printed.out + printed.err


class Problem:
    """Operands with NaN after the rows of an example, and what float32 makes of them."""

    def __init__(self, keys, dim, dtype=jnp.bfloat16):
        random = np.random.default_rng(3)

        def jagged():
            rows = random.standard_normal((ROWS, HEADS, dim)) * 0.5
            return jnp.asarray(np.where(HELD[:, None, None], rows, np.nan), dtype)

        self.dense = keys == "dense"
        self.q, self.d_out = jagged(), jagged()
        if self.dense:
            shape = (len(LENGTHS) * KEYS, HEADS, dim)
            self.k, self.v = (jnp.asarray(random.standard_normal(shape), dtype) for _ in range(2))
        else:
            self.k, self.v = jagged(), jagged()
        splits, lengths = jnp.asarray(SPLITS, jnp.int32), jnp.asarray(LENGTHS, jnp.int32)
        self.queries = schedule.packed(splits, lengths, ROWS)
        self.keys = schedule.dense(len(LENGTHS), KEYS) if self.dense else self.queries
        self.clean = lambda x, is_key=False: x if is_key and self.dense else zero_gaps(x, splits, lengths)

    def attend(self, stationary, streamed, sides, sums, config):
        @jax.jit
        def run(stationary, streamed):
            rows = config.units * config.run * sm100.TILE_ROWS
            work = schedule.work_list(*sides, item_rows=rows, balance=True)
            score = pointwise("gelu_tanh", PRE_SCALE, POST_SCALE)
            return sm100.attend(
                stationary, streamed, work, score=score, sums=sums, ragged=True, config=config, processors=3
            )

        return [np.asarray(x, np.float32) for x in run(stationary, streamed)]

    @functools.cached_property
    def exact(self):
        """Output, and gradients of q, k and v."""
        q, k, v, d_out = (jnp.nan_to_num(x.astype(jnp.float32)) for x in (self.q, self.k, self.v, self.d_out))

        def forward(q, k, v):
            out = jnp.zeros_like(q)
            for i, (start, length) in enumerate(zip(SPLITS, LENGTHS, strict=False)):
                own = slice(start, start + length)
                other = slice(i * KEYS, (i + 1) * KEYS) if self.dense else own
                s = jnp.einsum("qhd,khd->hqk", q[own], k[other]) * PRE_SCALE
                out = out.at[own].set(jnp.einsum("hqk,khd->qhd", jax.nn.gelu(s), v[other]) * POST_SCALE)
            return out

        out, pullback = jax.vjp(forward, q, k, v)
        return tuple(np.asarray(x) for x in (out, *pullback(d_out)))


def assert_close(actual, exact, *, packed):
    # Weights are rounded to 8 bits before they are multiplied, and so is the result.
    np.testing.assert_allclose(actual, exact, rtol=0, atol=0.01 * np.abs(exact).max())
    if packed:
        np.testing.assert_array_equal(actual[~HELD], 0)


@pytest.mark.parametrize(("keys", "dim", "config"), FORWARD)
def test_forward(keys, dim, config):
    p = Problem(keys, dim)
    streamed = (p.clean(p.k, True), p.clean(p.v, True))
    (out,) = p.attend((p.q,), streamed, (p.queries, p.keys), ("value",), config)
    assert_close(out, p.exact[0], packed=True)


@pytest.mark.parametrize(("keys", "dim", "config"), DQ)
def test_dq(keys, dim, config):
    p = Problem(keys, dim, jnp.float16)
    streamed = (p.clean(p.k, True), p.clean(p.v, True))
    (dq,) = p.attend((p.q, p.d_out), streamed, (p.queries, p.keys), ("key",), config)
    assert_close(dq, p.exact[1], packed=True)


@pytest.mark.parametrize(("keys", "dim", "config"), DKV)
def test_dk_and_dv(keys, dim, config):
    p = Problem(keys, dim)
    streamed = (p.clean(p.q), p.clean(p.d_out))
    results = p.attend((p.k, p.v), streamed, (p.keys, p.queries), ("key", "value"), config)
    for actual, exact in zip(results, p.exact[2:], strict=True):
        assert_close(actual, exact, packed=not p.dense)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Sm100Config(block=256, stages=2), "bytes of shared memory"),
        (Sm100Config(block=128, stages=2, score_stages=2), "columns of tensor memory"),
        (Sm100Config(block=64, units=1, warpgroups=2), "config.warpgroups=2 is for backward passes; it must be 1"),
    ],
)
def test_sizes_that_a_pass_cannot_have_are_refused(config, message):
    p = Problem("dense", 128)
    with pytest.raises(ValueError, match=message):
        p.attend((p.q,), (p.k, p.v), (p.queries, p.keys), ("value",), config)


def test_a_block_that_the_chip_does_not_know_is_refused():
    for fields in ({"block": 48}, {"block": 32, "polynomial": 4}):
        with pytest.raises(ValueError, match="block must be a multiple of 32, and of 64 for a share of polynomials"):
            Sm100Config(**fields)


def test_two_warpgroups_share_one_unit_with_one_slot():
    for fields in ({"units": 2}, {"units": 1, "score_stages": 2}, {"units": 1, "block": 96}):
        with pytest.raises(ValueError, match="warpgroups=2 needs units=1, score_stages=1, and a block that 64 divides"):
            Sm100Config(warpgroups=2, **fields)
