"""HSTU's attention and block against their equations, example by example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kunlun_jax.nn.causal_pointwise import causal_pointwise, time_bucket
from kunlun_jax.nn.hstu import HSTUBlock
from tests.examples import build, random_jagged

HEADS, DIM, POSITIONS, BUCKETS, N = 2, 4, 6, 12, 5.0
# Tiles are of 16 rows here: one, two and four of them, and empty examples before and after.
LENGTHS, ROWS = (0, 5, 16, 40, 1, 0, 17), 128


def operands(seed: int = 0):
    """q, k, v, ages, biases, with NaN in the rows of no event."""
    rng = np.random.default_rng(seed)
    packed = random_jagged(LENGTHS, 3 * HEADS * DIM, rows=ROWS, seed=seed, gaps=np.nan)
    q, k, v = (x.reshape(ROWS, HEADS, DIM) for x in jnp.split(packed.values, 3, axis=1))
    age = np.sort(rng.exponential(50.0, ROWS))[::-1].astype(np.float32)
    biases = (jnp.asarray(rng.normal(size=n), jnp.float32) for n in (POSITIONS, BUCKETS))
    age = jnp.where(packed.mask(), jnp.asarray(age), jnp.nan)
    return packed, (q, k, v, age, *biases)


def by_definition(packed, q, k, v, age, position_bias, time_bias):
    """The equation for each example, in plain jax.numpy."""
    out = jnp.zeros_like(q)
    for start, n in zip(np.asarray(packed.row_splits)[:-1], LENGTHS, strict=True):
        rows = slice(start, start + n)
        i, j = np.arange(n)[:, None], np.arange(n)[None, :]
        gap = np.maximum(np.asarray(age)[rows][None, :] - np.asarray(age)[rows][:, None], 1.0)
        bucket = np.minimum(np.floor(np.log(gap) / 0.301).astype(int), BUCKETS - 1)
        bias = position_bias[np.clip(i - j, 0, POSITIONS - 1)] + time_bias[bucket]
        s = jnp.einsum("ihd,jhd->hij", q[rows], k[rows]) + bias[None]
        a = jnp.where((j <= i)[None], jax.nn.silu(s), 0.0) / N
        out = out.at[rows].set(jnp.einsum("hij,jhd->ihd", a, v[rows]))
    return jnp.where(packed.mask()[:, None, None], out, 0.0)


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_outputs_and_gradients_are_those_of_the_definition(monkeypatch, chunk):
    """With one pair of tiles a step, and with all of them in one."""
    monkeypatch.setattr("pallas_kernels.xla.tiles.chunk_tiles", lambda scores: min(chunk, 16))
    packed, arrays = operands()
    target = jnp.asarray(np.random.default_rng(1).normal(size=(ROWS, HEADS, DIM)), jnp.float32)
    clean = [jnp.nan_to_num(x) for x in arrays]

    def loss(function):
        def of(q, k, v, position_bias, time_bias, age):
            out = function(q, k, v, age, position_bias, time_bias)
            return (out * target).sum(), out

        return jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2, 3, 4), has_aux=True))

    def ours(*x):
        return causal_pointwise(*x, packed.row_splits, packed.lengths, scale=1 / N)

    q, k, v, age, *biases = arrays
    (_, found), gradients = loss(ours)(q, k, v, *biases, age)
    q, k, v, age, *biases = clean
    (_, expected), wanted = loss(lambda *x: by_definition(packed, *x[:3], np.asarray(clean[3]), *x[4:]))(
        q, k, v, *biases, age
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for a, b in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
        assert np.abs(b).max() > 1e-2


def test_buckets_of_time():
    gaps = jnp.asarray([-5.0, 0.0, 1.0, 1.34, 1.36, np.e, 1e4, 1e9], jnp.float32)
    expected = [0, 0, 0, 0, 1, 3, 30, 39]
    np.testing.assert_array_equal(time_bucket(gaps, 40), expected)


@pytest.mark.parametrize("biased", [True, False])
def test_block_is_its_equation(biased):
    options = {"heads": HEADS, "n": N, "biased": biased, "positions": 4, "buckets": 5, "dropout": 0.5}
    block = build(
        lambda: HSTUBlock(8, **options, implementation="reference", dtype=jnp.float32, rngs=nnx.Rngs(0)), scale=0.6
    )
    lengths = (0, 3, 9)
    packed = random_jagged(lengths, 8, rows=40)
    age = jnp.asarray(np.linspace(300, 0, 40), jnp.float32)
    found = np.asarray(jax.jit(block)(packed, age))

    def norm(x, layer):
        x = x - x.mean(-1, keepdims=True)
        scale, bias = (np.asarray(p[...]) for p in (layer.scale, layer.bias))
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale + bias

    for start, n in zip(np.asarray(packed.row_splits)[:-1], lengths, strict=True):
        x, a = (np.asarray(y, np.float64)[start : start + n] for y in (packed.values, age))
        h = norm(x, block.norm) @ np.asarray(block.uvqk.kernel[...]) + np.asarray(block.uvqk.bias[...])
        u, v, q, k = np.split(h / (1 + np.exp(-h)), 4, axis=1)
        out = []
        for head in np.split(np.arange(8), HEADS):
            s = q[:, head] @ k[:, head].T
            if biased:
                gap = np.maximum(a[None, :] - a[:, None], 1.0)
                distance = np.arange(n)[:, None] - np.arange(n)[None, :]
                s = s + np.asarray(block.position_bias[...])[np.clip(distance, 0, 3)]
                s = s + np.asarray(block.time_bias[...])[np.minimum(np.log(gap) / 0.301, 4).astype(int)]
            weights = s / (1 + np.exp(-s)) / N
            out.append((np.tril(weights) if biased else weights) @ v[:, head])
        gated = u * norm(np.concatenate(out, axis=1), block.out_norm)
        expected = x + gated @ np.asarray(block.out.kernel[...]) + np.asarray(block.out.bias[...])
        np.testing.assert_allclose(found[start : start + n], expected, atol=1e-4)
    dropped = block(packed, age, nnx.Rngs(dropout=0))
    assert np.abs(np.asarray(dropped) - found)[np.asarray(packed.mask())].max() > 1e-2
