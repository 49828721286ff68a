"""Softmax on the streaming kernel of sm_100: what the contract of the operators does not come to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.jagged import zero_gaps
from pallas_kernels.mosaic import launch, schedule, sm100, target, tuning
from pallas_kernels.mosaic.config import Sm100Config
from pallas_kernels.mosaic.score import LOWEST, pointwise, softmax
from pallas_kernels.operators.window_attention import mosaic as window_attention

if jax.default_backend() == "gpu":
    pytest.skip("the tests of the operators run these kernels on the chip", allow_module_level=True)

DIM, SCALE = 32, 0.3
SMALL = {name: Sm100Config(block=64, stages=2) for name in ("forward", "dq")} | {
    "dkv": Sm100Config(block=32, stages=2, units=1, score_stages=2)
}
SHARED = SMALL | {name: Sm100Config(block=64, stages=2, units=1, warpgroups=2) for name in ("dq", "dkv")}


@pytest.fixture(autouse=True)
def no_race(capfd):
    with target.interpret("sm100", processors=1, detect_races=True):
        yield
    printed = capfd.readouterr()
    assert "RACE DETECTED" not in printed.out + printed.err


def offsets(lengths):
    splits = np.concatenate([[0], np.cumsum(-(-np.array(lengths) // 8) * 8)])
    return jnp.asarray(splits, jnp.int32), jnp.asarray(lengths, jnp.int32)


def exact(q, k, v, lengths, window):
    """In float32, each head of keys repeated for the heads of queries that share it."""
    splits, _ = offsets(lengths)
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    k, v = (jnp.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    out = jnp.zeros_like(q)
    for start, length in zip(splits, lengths, strict=False):
        rows = slice(int(start), int(start) + length)
        ahead = np.arange(length)[None, :] - np.arange(length)[:, None]
        inside = (ahead >= -window[0]) & (ahead <= window[1])
        scores = jnp.where(inside, jnp.einsum("qhd,khd->hqk", q[rows], k[rows]) * SCALE, -jnp.inf)
        if length:
            out = out.at[rows].set(jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores), v[rows]))
    return out


def call(q, k, v, lengths, window, configs=SMALL):
    return window_attention.window_attention(
        q, k, v, *offsets(lengths), window=window, scale=SCALE, configs=configs
    ).astype(jnp.float32)


def assert_close(actual, expected):
    # Weights and results have 8 bits.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=0.01 * np.abs(expected).max())


def test_maxima_that_rise_from_tile_to_tile():
    """Without the factors of a maximum that rises, earlier tiles would count as much as the later ones."""
    random, length = np.random.default_rng(0), 200
    direction = random.standard_normal(DIM)
    # Half of the rows of queries see scores that rise by some 20 powers of 2 a tile, for the others they fall.
    sign = np.where(np.arange(length) % 2, 1.0, -1.0)
    q = sign[:, None, None] * direction + 0.1 * random.standard_normal((length, 1, DIM))
    k = np.arange(length)[:, None, None] * 0.03 * direction + 0.1 * random.standard_normal((length, 1, DIM))
    v = random.standard_normal((length, 1, DIM))
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    window = (length, length)
    actual = jax.jit(lambda q, k, v: call(q, k, v, (length,), window))(q, k, v)
    assert_close(actual, exact(q, k, v, (length,), window))


@pytest.mark.slow
@pytest.mark.parametrize(("window", "configs"), [((20, 30), SMALL), ((200, 0), SMALL), ((20, 30), SHARED)])
def test_heads_of_keys_are_shared(window, configs):
    lengths, random = (70, 0, 9), np.random.default_rng(1)
    rows = int(offsets(lengths)[0][-1])
    q, k, v, d_out = (jnp.asarray(random.standard_normal((rows, heads, DIM)), jnp.bfloat16) for heads in (4, 2, 2, 4))
    # Rows that no example owns get no gradient, and none of theirs counts.
    held = np.concatenate([np.arange(72) < 70, np.arange(16) < 9])

    def gradients(function):
        out, pullback = jax.vjp(lambda q, k, v: function(q, k, v, lengths, window), q, k, v)
        return (out, *pullback(jnp.where(held[:, None, None], d_out, 0).astype(jnp.float32)))

    actual = jax.jit(lambda: gradients(functools.partial(call, configs=configs)))()
    expected = gradients(exact)
    for x, y in zip(actual, expected, strict=True):
        assert x.shape == y.shape
        assert_close(np.asarray(x, np.float32), np.asarray(y, np.float32))


def test_each_of_two_warpgroups_reads_the_statistics_of_its_queries():
    """dk and dv in a shared unit: two streamed tiles, the last of which ends in the second warpgroup's half."""
    length, rows, random = 110, 112, np.random.default_rng(4)
    held = np.arange(rows)[:, None, None] < length
    q, k, v, d_out = (
        jnp.asarray(np.where(held, random.standard_normal((rows, 1, DIM)), 0), jnp.bfloat16) for _ in range(4)
    )
    window = (rows, rows)
    out, pullback = jax.vjp(lambda k, v: exact(q, k, v, (length,), window), k, v)
    scores = jnp.einsum("qd,kd->qk", *(x[:length, 0].astype(jnp.float32) for x in (q, k))) * SCALE
    delta = launch.delta(d_out, out.astype(jnp.bfloat16))[0, :length]
    statistics = (jax.nn.logsumexp(scores, axis=1) * np.log2(np.e), delta)
    behind = [(0, 0), (0, rows - length)]
    own = schedule.packed(*offsets((length,)), rows)
    found = sm100.attend(
        (k, v),
        (q, d_out),
        schedule.work_list(own, own, item_rows=sm100.TILE_ROWS, balance=False),
        score=softmax(SCALE),
        sums=("key", "value"),
        ragged=True,
        config=SHARED["dkv"],
        processors=1,
        statistics=tuple(jnp.pad(x[None], behind, constant_values=np.nan) for x in statistics),
    )
    for actual, expected in zip(found, pullback(d_out.astype(jnp.float32)), strict=True):
        assert_close(np.asarray(actual, np.float32), np.asarray(expected, np.float32))


def attend(score, config, *, heads=(1, 1), **arguments):
    """The forward pass for two examples, one of them without keys; ``arguments`` are those of `sm100.attend`."""
    queries = schedule.packed(*offsets((20, 5)), 32)
    keys = schedule.packed(*offsets((17, 0)), 24)
    random = np.random.default_rng(2)
    q = jnp.asarray(random.standard_normal((32, heads[0], DIM)), jnp.bfloat16)
    k = jnp.asarray(random.standard_normal((24, heads[1], DIM)), jnp.bfloat16)
    rows = config.units * config.run * sm100.TILE_ROWS
    work = schedule.work_list(queries, keys, item_rows=rows, balance=False)
    results = sm100.attend(
        (q,),
        (k, zero_gaps(k, *offsets((17, 0)))),
        work,
        score=score,
        sums=("value",),
        ragged=True,
        config=config,
        processors=1,
        **arguments,
    )
    return q, k, [np.asarray(x) for x in results]


def test_log_sums_and_wide_results():
    """float32 results, and the log-sum-exps of rows with keys, without keys, and that nobody owns."""
    q, k, (out, log_sum) = attend(softmax(SCALE), Sm100Config(block=32, stages=2, units=1), out_dtype=jnp.float32)
    scores = jnp.einsum("qhd,khd->hqk", q.astype(jnp.float32)[:20], k.astype(jnp.float32)[:17]) * SCALE
    expected = jax.nn.logsumexp(scores, axis=-1) / np.log(2)
    np.testing.assert_allclose(log_sum[:, :20], expected, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(log_sum[:, 20:], np.float32(LOWEST))
    assert out.dtype == np.float32
    values = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores), k.astype(jnp.float32)[:17])
    assert_close(out[:20], np.asarray(values))
    np.testing.assert_array_equal(out[20:], 0)


@pytest.mark.parametrize(
    ("score", "arguments", "message"),
    [
        (softmax(SCALE), {}, "config.run=2 .*score.online"),
        (pointwise("relu", 1.0, 1.0), {"window": (1, 1)}, "config.run=2 .*window"),
        (
            pointwise("relu", 1.0, 1.0),
            {"statistics": (jnp.zeros((1, 32)),)},
            "config.run=2 .*statistics",
        ),
        (pointwise("relu", 1.0, 1.0), {"heads": (3, 2)}, "3 heads stay and 2 stream"),
    ],
)
def test_refusals(score, arguments, message):
    with pytest.raises(ValueError, match=message):
        attend(score, Sm100Config(block=32, stages=2, units=1, run=2), **arguments)


@pytest.mark.parametrize("pass_", tuning.PASSES)
@pytest.mark.parametrize("dim", launch.DIMS)
@pytest.mark.parametrize(
    ("operator", "keys"),
    [("window_attention", 201), ("window_attention", "jagged"), ("seed_attention", 64), ("seed_attention", 256)],
)
def test_default_block_sizes_fit(operator, keys, dim, pass_):
    key = tuning.Key(pass_, dim, keys, "softmax")
    config = tuning.default(key, "sm100", operator)
    assert tuning.fits(key, config)
    assert not tuning.fits(key, Sm100Config(block=256, stages=8))
