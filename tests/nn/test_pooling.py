"""HSP, PMA and SumKronLinear against their equations, and what a history without events becomes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kunlun_jax.nn.pooling import SeedAttention, SumKronLinear, TokenLinear, make_pooling
from tests.examples import build, random_jagged

DIM, HEADS, SEEDS, TOKENS, RANK = 8, 2, 5, 3, 2
LENGTHS = (0, 4, 0, 9, 1)
OPTIONS = {"heads": HEADS, "implementation": "reference", "dtype": jnp.float32}


def make(kind: str, **more):
    return build(lambda: make_pooling(kind, SEEDS, TOKENS, DIM, rank=RANK, rngs=nnx.Rngs(0), **OPTIONS, **more))


def seed_attention_by_hand(module: SeedAttention, events) -> np.ndarray:
    """MHA(seeds, S, S) example by example, float64."""
    weights = {name: np.asarray(x, np.float64) for name, x in flat(module).items()}
    seeds = weights["seeds"]
    if module.norm is not None:
        seeds = seeds - seeds.mean(-1, keepdims=True)
        seeds = seeds / np.sqrt((seeds**2).mean(-1, keepdims=True) + 1e-5)
        seeds = seeds * weights["norm/scale"] + weights["norm/bias"]
    q = (seeds @ weights["query/kernel"] + weights["query/bias"]).reshape(-1, HEADS, DIM // HEADS)
    out = []
    for start, length in zip(np.asarray(events.row_splits)[:-1], np.asarray(events.lengths), strict=True):
        s = np.asarray(events.values, np.float64)[start : start + length]
        k, v = np.split(s @ weights["key_value/kernel"] + weights["key_value/bias"], 2, axis=-1)
        if module.rank_keys is not None:
            newer = np.arange(length)[::-1, None]
            k = k + (np.log1p(newer) - 3) / 2 * weights["rank_keys"]
        k, v = (x.reshape(-1, HEADS, DIM // HEADS) for x in (k, v))
        pooled = np.zeros((len(seeds), HEADS, DIM // HEADS))
        for h in range(HEADS):
            if length:
                scores = np.exp(q[:, h] @ k[:, h].T / math.sqrt(DIM // HEADS))
                pooled[:, h] = scores / scores.sum(-1, keepdims=True) @ v[:, h]
                if module.counts and h >= HEADS // 2:
                    pooled[:, h] *= 0.5 * math.log(1 + length)
        out.append(pooled.reshape(-1, DIM) @ weights["out/kernel"] + weights["out/bias"])
    return np.stack(out)


def flat(module: nnx.Module) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


@pytest.mark.parametrize("ranks", [False, True])
@pytest.mark.parametrize("counts", [False, True])
def test_hsp_is_its_equations(counts, ranks):
    hsp = make("hsp", counts=counts, ranks=ranks)
    assert hsp.attention.norm is not None
    run = jax.jit(hsp)
    events = random_jagged(LENGTHS, DIM, rows=48, gaps=np.nan)
    z, w = (np.asarray(p[...], np.float64) for p in (hsp.condense.token_maps, hsp.condense.channel_maps))
    seeds = seed_attention_by_hand(hsp.attention, events)
    expected = sum(z[i].T @ seeds @ w[i] for i in range(RANK))
    assert run(events).shape == (len(LENGTHS), TOKENS, DIM)
    np.testing.assert_allclose(run(events), expected, atol=2e-5)


def test_pma_is_its_equation_and_leaves_as_many_tokens_as_it_has_queries():
    pma = make("pma")
    run = jax.jit(pma)
    events = random_jagged(LENGTHS, DIM, rows=48, gaps=np.nan)
    assert pma.seeds[...].shape == (TOKENS, DIM) and pma.norm is None
    np.testing.assert_allclose(run(events), seed_attention_by_hand(pma, events), atol=2e-5)


def test_an_aligned_hsp_starts_as_a_mean_of_events_that_keeps_its_channels():
    hsp = make_pooling("hsp", SEEDS, TOKENS, DIM, rank=RANK, aligned=True, rngs=nnx.Rngs(0), **OPTIONS)
    value, out = hsp.attention.key_value.kernel[...][:, DIM:], hsp.attention.out.kernel[...]
    maps = [np.asarray(x) for x in (value, out, *hsp.condense.channel_maps[...])]
    for kernel in maps:
        assert np.abs(kernel - np.eye(DIM)).std() < 0.4 / math.sqrt(DIM)
        assert np.abs(kernel - np.eye(DIM)).max() > 0


def test_seeds_without_sum_kron_linear_are_mixed_channel_by_channel():
    pool = make("seeds")
    events = random_jagged(LENGTHS, DIM, rows=48, gaps=np.nan)
    assert isinstance(pool.condense, TokenLinear) and pool.tokens_out == TOKENS
    z = np.asarray(pool.condense.token_map.kernel[...], np.float64)
    expected = np.einsum("st,bsd->btd", z, seed_attention_by_hand(pool.attention, events))
    np.testing.assert_allclose(jax.jit(pool)(events), expected, atol=2e-5)
    # Of HSP it lacks SumKronLinear alone.
    whole, without = (sum(x.size for x in jax.tree.leaves(nnx.state(m, nnx.Param))) for m in (make("hsp"), pool))
    assert whole - without == RANK * (SEEDS * TOKENS + DIM**2) - SEEDS * TOKENS


def test_sum_kron_linear_is_the_explicit_sum():
    layer = build(lambda: SumKronLinear(SEEDS, TOKENS, DIM, rank=RANK, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, SEEDS, DIM)), jnp.float32)
    z, w = np.asarray(layer.token_maps[...]), np.asarray(layer.channel_maps[...])
    expected = [sum(z[i].T @ example @ w[i] for i in range(RANK)) for example in np.asarray(x)]
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(layer, nnx.Param)))
    assert parameters == RANK * (SEEDS * TOKENS + DIM**2)


def test_sum_kron_linear_starts_with_outputs_as_large_as_its_inputs():
    @jax.jit
    def output():
        layer = SumKronLinear(64, 16, 32, rank=8, dtype=jnp.float32, rngs=nnx.Rngs(0))
        return layer(jax.random.normal(jax.random.key(0), (16, 64, 32)))

    y = np.asarray(output())
    assert 0.8 < float(y.std()) < 1.25


@pytest.mark.parametrize("kind", ["hsp", "seeds", "pma"])
def test_empty_histories_are_alike_defined_and_train(kind):
    pooling = make(kind)
    run = jax.jit(pooling)
    events = random_jagged(LENGTHS, DIM, rows=48, gaps=np.nan)
    y = np.asarray(run(events))
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(y[0], y[2])
    assert np.abs(y[0] - y[1]).max() > 0.01
    nobody = random_jagged((0, 0), DIM, rows=16, gaps=0.0)
    # Another shape is another program, whose sums may be taken in another order.
    np.testing.assert_allclose(run(nobody), np.stack([y[0], y[0]]), rtol=1e-5, atol=1e-6)

    graph, params = nnx.split(pooling)

    def loss(params, values):
        return jnp.square(nnx.merge(graph, params)(nobody.replace(values))).sum()

    by_params, by_values = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, nobody.values)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(by_params))
    np.testing.assert_array_equal(by_values, 0.0)


@pytest.mark.parametrize("kind", ["hsp", "seeds", "pma"])
def test_order_of_events_does_not_matter(kind):
    pooling = make(kind)
    run = jax.jit(pooling)
    events = random_jagged((6, 9), DIM, rows=32)
    order = np.arange(32)
    order[:6], order[8:17] = order[:6][::-1], np.roll(order[8:17], 4)
    np.testing.assert_allclose(run(events.replace(events.values[order])), run(events), atol=1e-5)


def test_unknown_pooling():
    with pytest.raises(ValueError, match=r"pooling is 'mean'; .*'hsp', 'seeds' or 'pma'"):
        make("mean")
