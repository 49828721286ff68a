"""Event tokens: MaskNet and MLP against NumPy, age and rank as inputs, and the path tied to the context's maps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kunlun_jax.batch import Jagged
from kunlun_jax.nn.event_input import EventInput, unit_age, unit_rank
from kunlun_jax.nn.mlp import MLP
from tests.examples import build

FIELDS, DENSE, EMBEDDING, DIM, ROWS = 2, 1, 3, 4, 6


def make(kind: str, age: bool = True, **more) -> EventInput:
    options = {"kind": kind, "age": age, "activation": "relu", "dtype": jnp.float32, **more}
    return build(lambda: EventInput(FIELDS, DENSE, EMBEDDING, DIM, rngs=nnx.Rngs(0), **options))


def inputs():
    rng = np.random.default_rng(0)
    shapes = ((ROWS, FIELDS, EMBEDDING), (ROWS, DENSE))
    fields, dense = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return fields, dense, rng.uniform(0, 1e6, ROWS).astype(np.float32)


def mlp_by_hand(mlp: MLP, x: np.ndarray) -> np.ndarray:
    first, second = ([np.asarray(p[...]) for p in (m.kernel, m.bias)] for m in mlp.layers)
    return np.maximum(x @ first[0] + first[1], 0) @ second[0] + second[1]


@pytest.mark.parametrize("kind", ["masknet", "mlp"])
@pytest.mark.parametrize("age", [True, False])
def test_tokens_against_numpy(kind, age):
    module = make(kind, age)
    fields, dense, ages = inputs()
    x = np.concatenate([fields.reshape(ROWS, -1), dense], axis=1)
    if age:
        x = np.concatenate([x, [[(math.log(1 + a / 3600) - 5.5) / 2] for a in ages.tolist()]], axis=1)
    expected = mlp_by_hand(module.mlp, x * mlp_by_hand(module.mask, x) if kind == "masknet" else x)
    y = jax.jit(module)(*(jnp.asarray(part) for part in (fields, dense, ages)))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)
    width = FIELDS * EMBEDDING + DENSE + age
    mask = 2 * (width * DIM + DIM * width) if kind == "masknet" else 0
    assert module.flops() == mask + 2 * (width * DIM + DIM * DIM)


def test_unit_age():
    ages = jnp.array([0.0, 3600.0, 365 * 86400.0])
    np.testing.assert_allclose(unit_age(ages), [-2.75, (math.log(2) - 5.5) / 2, 1.789], atol=1e-3)


def test_unit_rank_counts_the_newer_events_of_the_same_history():
    lengths = [3, 0, 1]
    splits = np.array([0, 8, 8, 16], np.int32)
    events = Jagged(np.zeros((24, 1), np.float32), splits, np.array(lengths, np.int32))
    ranks = np.asarray(unit_rank(events, jnp.float32))
    assert ranks.dtype == np.float32
    for start, length in zip(splits, lengths, strict=False):
        newer = np.arange(length)[::-1]
        np.testing.assert_allclose(ranks[start : start + length], (np.log1p(newer) - 3) / 2, rtol=1e-6)
    assert np.isfinite(ranks).all()


TIED = ((1, 2), (0, 0))
"""Field 1 shares the table of context feature 2, field 0 that of feature 0."""


@pytest.mark.parametrize("width", [None, DIM - 1, DIM + 2])
def test_tied_fields_take_the_context_features_own_maps(width):
    """Cut or padded to the event's width; without maps the embeddings themselves are context tokens."""
    plain, tied = make("mlp"), make("mlp", tied=TIED)
    fields, dense, ages = (jnp.asarray(part) for part in inputs())
    maps = None if width is None else np.random.default_rng(1).normal(size=(3, EMBEDDING, width)).astype(np.float32)
    expected = np.zeros((ROWS, DIM))
    for field, feature in TIED:
        path = np.asarray(fields)[:, field] @ (np.eye(EMBEDDING) if maps is None else maps[feature])
        kept = min(path.shape[1], DIM)
        expected[:, :kept] += path[:, :kept] / math.sqrt(2)
    added = tied(fields, dense, ages, None if maps is None else jnp.asarray(maps)) - plain(fields, dense, ages)
    np.testing.assert_allclose(added, expected, atol=1e-5)
    more = tied.flops(width) - plain.flops(width)
    assert more == (0 if width is None else 2 * 2 * EMBEDDING * min(width, DIM))


def test_the_mask_starts_around_one_and_the_last_layer_as_small_as_asked():
    options = {"kind": "masknet", "age": True, "activation": "relu", "dtype": jnp.float32}
    small, full = (
        EventInput(FIELDS, DENSE, EMBEDDING, DIM, mlp_start=start, rngs=nnx.Rngs(0), **options) for start in (0.1, 1.0)
    )
    np.testing.assert_array_equal(full.mask.layers[-1].bias[...], 1.0)
    small, full = (np.asarray(module.mlp.layers[-1].kernel[...]) for module in (small, full))
    np.testing.assert_allclose(small, 0.1 * full, rtol=1e-5)


def test_unknown_kind():
    with pytest.raises(ValueError, match=r"event_input is 'linear'; .*'masknet' or 'mlp'"):
        make("linear")
