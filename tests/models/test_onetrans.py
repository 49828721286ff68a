"""OneTrans against plain NumPy in float64, padded and masked; what its tokens may read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kunlun_jax.models.onetrans import OneTransConfig
from kunlun_jax.nn.embedding import lookup
from kunlun_jax.nn.mixed import MixedBlock
from tests.examples import CONTEXTS, VIEWS, build, random_batch, random_jagged, tiny_tables
from tests.models.systems import QUICK, tiny_system

DIM, TOKENS = 8, 3


def run(**changes):
    """Model, inputs and logits of the random batch."""
    model, batch = tiny_system("onetrans", implementation="reference", **changes), random_batch()
    tables = tiny_tables(model.schema, dim=model.embedding_dim)

    def forward(batch):
        embedded = lookup(model.schema, batch, tables)
        return model.inputs(batch, embedded), model(batch, embedded)

    inputs, logits = jax.jit(forward, compiler_options=QUICK)(batch)
    return model, inputs, np.asarray(logits)


def silu(x):
    return x / (1 + np.exp(-x))


def rms_norm(norm: nnx.RMSNorm, x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * np.asarray(norm.scale[...], np.float64)


def mixed(layer, x, longest: int):
    """The map of the events on the first `longest` tokens, one for each of the others."""
    own = np.asarray(layer.own[...], np.float64)
    out = np.zeros((*x.shape[:2], own.shape[-1]))
    if layer.shared is not None:
        out[:, :longest] = x[:, :longest] @ np.asarray(layer.shared.kernel[...], np.float64)
    for token, kernel in enumerate(own):
        out[:, longest + token] = x[:, longest + token] @ kernel
    return out


def padded(model, x, events, ages) -> tuple[np.ndarray, np.ndarray]:
    """All tokens, the events at the end of as many places as the longest history has, and which places hold one."""
    types = np.asarray(model.types[...], np.float64)
    longest = max(v + c for v, c in zip(VIEWS, CONTEXTS, strict=True))
    tokens = np.zeros((len(x), longest + x.shape[1], x.shape[2]))
    tokens[:, longest:] = x
    held = np.zeros(tokens.shape[:2], bool)
    held[:, longest:] = True
    for example in range(len(VIEWS)):
        rows = []
        for number, name in enumerate(sorted(events)):
            start, n = int(events[name].row_splits[example]), int(events[name].lengths[example])
            values = np.asarray(events[name].values, np.float64)[start : start + n] + types[number]
            rows += list(zip(np.asarray(ages[name])[start : start + n], values, strict=True))
        rows.sort(key=lambda row: -row[0])
        if rows:
            tokens[example, longest - len(rows) : longest] = [value for _, value in rows]
            held[example, longest - len(rows) : longest] = True
    return tokens, held


def by_hand(model, inputs, queries: tuple[int, ...], *, causal: bool) -> np.ndarray:
    """The logits, with every query of every block."""
    x, held = padded(model, *inputs)
    batch, places, dim = x.shape
    longest = places - model.context.tokens
    for layer, kept in zip(model.layers, queries, strict=True):
        normed = rms_norm(layer.norm, x)
        q, k, v = (
            mixed(w, normed, longest).reshape(batch, places, layer.heads, -1)
            for w in (layer.query, layer.key, layer.value)
        )
        scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(dim // layer.heads)
        may = held[:, None, None, :] & (np.tri(places, dtype=bool) if causal else True)
        weights = np.where(may, np.exp(scores), 0)
        weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
        read = np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        x = x + read @ np.asarray(layer.out.kernel[...], np.float64)
        x = x + mixed(layer.down, silu(mixed(layer.up, rms_norm(layer.ffn_norm, x), longest)), longest)
        held[:, : longest - min(kept, longest)] = False
    found = x[:, longest:] if model.norm is None else rms_norm(model.norm, x[:, longest:])
    found = found.reshape(batch, -1)
    first, last = model.head.layers
    hidden = silu(found @ np.asarray(first.kernel[...]) + np.asarray(first.bias[...]))
    return hidden @ np.asarray(last.kernel[...]) + np.asarray(last.bias[...])


CASES = {
    "pyramid": ({"layers": 3}, (6, 3, 0)),
    "whole": ({"first_queries": None}, (99, 0)),
    "longer than any history": ({"first_queries": 99}, (99, 0)),
    "features alone": ({"first_queries": 0}, (0, 0)),
    "not causal": ({"causal": False}, (6, 0)),
    "one block": ({"layers": 1}, (0,)),
    "no last norm": ({"last_norm": False}, (6, 0)),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_its_equation(case):
    changes, queries = CASES[case]
    model, inputs, logits = run(**changes)
    expected = by_hand(model, inputs, queries, causal=changes.get("causal", True))
    np.testing.assert_allclose(logits, expected, rtol=2e-4, atol=2e-4)


def test_how_many_go_on():
    """OneTrans_S's schedule, whose 1190 events come down to none, before its rounding to multiples of 32."""
    config = OneTransConfig(layers=6, first_queries=1190)
    assert config.queries() == (1190, 952, 714, 476, 238, 0)
    assert dataclasses.replace(config, first_queries=None).queries() == (None,) * 5 + (0,)
    assert dataclasses.replace(config, layers=1).queries() == (0,)


@pytest.mark.parametrize("causal", [True, False])
def test_a_token_reads_what_stands_before_it(causal):
    """Those after it, feature tokens and events, change nothing of it; and they change all that stands behind them."""
    options = {"heads": 2, "hidden": 6, "activation": "silu", "start": 1.0, "aligned": True, "dtype": jnp.float32}
    block = build(
        lambda: MixedBlock(
            DIM, TOKENS, queries=4, causal=causal, implementation="reference", rngs=nnx.Rngs(0), **options
        )
    )
    events = random_jagged((5,), DIM, rows=8)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, TOKENS, DIM)), jnp.float32)
    forward = jax.jit(block, compiler_options=QUICK)

    def outputs(events, x) -> np.ndarray:
        """Of the four events that go on, and of the feature tokens."""
        kept, x = forward(events, x)
        return np.concatenate([np.asarray(kept.values)[:4], np.asarray(x)[0]])

    before = outputs(events, x)
    for place in range(5 + TOKENS):
        if place < 5:
            changed = outputs(events.replace(events.values.at[place].add(1.0)), x)
        else:
            changed = outputs(events, x.at[0, place - 5].add(1.0))
        moved = np.abs(changed - before).max(axis=1)
        # The oldest event does not go on, but is read.
        first = max(place - 1, 0) if causal else 0
        assert moved[first:].min() > 1e-5
        np.testing.assert_array_equal(moved[:first], 0)
