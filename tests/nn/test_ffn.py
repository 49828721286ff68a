"""PersonalizedFFN: the whole block of the specification in plain NumPy, float64, under every reading of the scale."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kunlun_jax.nn.ffn import PersonalizedFFN, PlainFFN, TokenToWeights
from tests.examples import build, random_jagged

TOKENS, CONTEXT, DIM, HEADS, WIDTH = 3, 6, 8, 2, 5
LENGTHS = (2, 0, 9)
ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def make(activation: str = "gelu", pre: float = 1.0, post: float = 1.0, **more) -> PersonalizedFFN:
    options = {"heads": HEADS, "width": WIDTH, "activation": activation, "pre_scale": pre, "post_scale": post}
    options |= {"implementation": "reference", "dtype": jnp.float32, **more}
    return build(lambda: PersonalizedFFN(TOKENS, CONTEXT, DIM, rngs=nnx.Rngs(0), **options))


def contexts(batch: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(batch, TOKENS, CONTEXT)), jnp.float32)


def weights_by_hand(weights: TokenToWeights, x: np.ndarray) -> np.ndarray:
    """``[width, heads, head_dim]`` of one example."""
    token_map, channel_map = (np.asarray(m.kernel[...], np.float64) for m in (weights.token_map, weights.channel_map))
    out = token_map.T @ x @ channel_map + np.asarray(weights.channel_map.bias[...], np.float64)
    if weights.free is not None:
        out = out + np.asarray(weights.free[...], np.float64)
    return out.reshape(WIDTH, HEADS, DIM // HEADS)


def block_by_hand(block: PersonalizedFFN, events, x_sum, activation: str, pre: float, post: float) -> dict:
    out = {}
    splits, lengths = np.asarray(events.row_splits), np.asarray(events.lengths)
    for b in range(len(lengths)):
        x = np.asarray(x_sum[b], np.float64)
        k, v = weights_by_hand(block.keys, x), weights_by_hand(block.values, x)
        for row in range(splits[b], splits[b] + lengths[b]):
            q = np.asarray(events.values[row], np.float64)
            normed = (q - q.mean()) / math.sqrt(q.var() + 1e-5)
            heads = normed.reshape(HEADS, DIM // HEADS)
            o = [ACTIVATIONS[activation](pre * heads[h] @ k[:, h].T) @ v[:, h] * post for h in range(HEADS)]
            o = np.concatenate(o) + normed
            out[row] = o / math.sqrt((o**2).mean() + 1e-5) + q
    return out


CASES = [("gelu", 1.0, 0.25, 0.0), ("gelu", 0.25, 1.0, 0.5), ("silu", 1.0, 0.25, 0.0)]


@pytest.mark.parametrize(("activation", "pre", "post", "free"), CASES)
def test_block_against_plain_numpy(activation, pre, post, free):
    block = make(activation, pre, post, free_values=free)
    assert block.keys.free is None and (block.values.free is None) == (free == 0)
    run = jax.jit(block)
    events = random_jagged(LENGTHS, DIM, rows=32)
    x_sum = contexts(len(LENGTHS))
    expected = block_by_hand(block, events, x_sum, activation, pre, post)
    assert len(expected) == sum(LENGTHS)
    y = np.asarray(run(events, x_sum))
    np.testing.assert_allclose(y[list(expected)], list(expected.values()), atol=2e-5)


def test_aligned_keys_are_combinations_of_the_summary_tokens():
    """Cut or padded to the event's width, and nothing turns them at the start."""
    options = {"heads": HEADS, "width": WIDTH, "activation": "gelu", "pre_scale": 1.0, "post_scale": 1.0}
    options |= {"implementation": "reference", "dtype": jnp.float32}
    block = PersonalizedFFN(TOKENS, CONTEXT, DIM, aligned=True, rngs=nnx.Rngs(0), **options)
    kernel = np.asarray(block.keys.channel_map.kernel[...])
    np.testing.assert_array_equal(kernel, np.eye(CONTEXT, DIM))


@pytest.mark.parametrize("plain", [False, True])
def test_layer_scale_is_a_gain_of_each_channel_on_what_the_block_changes(plain):
    options = {"width": WIDTH, "activation": "gelu", "dtype": jnp.float32, "layer_scale": 0.01}
    new = PlainFFN(DIM, rngs=nnx.Rngs(0), **options)
    np.testing.assert_array_equal(new.gain[...], np.full(DIM, 0.01, np.float32))
    block = new if plain else make(layer_scale=0.01)
    events, x_sum = random_jagged(LENGTHS, DIM, rows=32), contexts(len(LENGTHS))
    real = np.asarray(events.mask())
    run = jax.jit(lambda block: (block(events, x_sum) - events.values)[np.flatnonzero(real)])
    block.gain[...] = jnp.ones(DIM)
    whole = np.asarray(run(block))
    np.testing.assert_allclose(np.sqrt(np.square(whole).mean(1)), 1, rtol=1e-3)
    block.gain[...] = jnp.arange(DIM, dtype=jnp.float32)
    np.testing.assert_allclose(run(block), np.arange(DIM) * whole, rtol=1e-4, atol=1e-5)


def test_the_context_of_an_example_changes_its_own_events_alone():
    block = make()
    run = jax.jit(block)
    events = random_jagged((8, 8), DIM, rows=16)
    x_sum = contexts(2)
    y, z = run(events, x_sum), run(events, x_sum.at[1].add(1.0))
    np.testing.assert_array_equal(y[:8], z[:8])
    assert np.abs(y[8:] - z[8:]).max(axis=1).min() > 1e-3


def test_gradients_are_finite_without_events():
    block = make()
    events = random_jagged((0, 0), DIM, rows=16)
    x_sum = jnp.ones((2, TOKENS, CONTEXT))
    graph, params = nnx.split(block)
    gradient = jax.jit(jax.grad(lambda p, x: nnx.merge(graph, p)(events, x).sum(), argnums=(0, 1)))(params, x_sum)
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(leaf, 0.0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_plain_block_against_plain_numpy(activation):
    """The same weights for every example, whatever its context; rows without an event are left to themselves."""
    block = build(lambda: PlainFFN(DIM, width=WIDTH, activation=activation, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    events = random_jagged(LENGTHS, DIM, rows=32, gaps=np.nan)
    w1, b1, w2, b2 = (np.asarray(x[...], np.float64) for m in (block.hidden, block.out) for x in (m.kernel, m.bias))
    q = np.asarray(events.values, np.float64)[np.asarray(events.mask())]
    normed = (q - q.mean(1, keepdims=True)) / np.sqrt(q.var(1, keepdims=True) + 1e-5)
    o = ACTIVATIONS[activation](normed @ w1 + b1) @ w2 + b2 + normed
    expected = o / np.sqrt((o**2).mean(1, keepdims=True) + 1e-5) + q
    run = jax.jit(block)
    y = np.asarray(run(events, contexts(len(LENGTHS))))[np.asarray(events.mask())]
    np.testing.assert_allclose(y, expected, atol=2e-5)
    np.testing.assert_array_equal(y, np.asarray(run(events))[np.asarray(events.mask())])


def test_a_plain_block_costs_what_a_personalized_one_of_its_width_does_without_the_weights():
    lengths = np.array(LENGTHS)
    personalized = make()
    weights = len(lengths) * (personalized.keys.flops() + personalized.values.flops())
    plain = build(lambda: PlainFFN(DIM, width=WIDTH, activation="gelu", dtype=jnp.float32, rngs=nnx.Rngs(0)))
    assert plain.flops(lengths) == personalized.flops(lengths) - weights == 4 * DIM * WIDTH * sum(LENGTHS)
