"""Context tokens and WeightGeneration against NumPy."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kunlun_jax.data.dataset import Moments
from kunlun_jax.data.schema import Schema
from kunlun_jax.nn.context import ContextTokens, WeightGeneration, mean_by_example
from kunlun_jax.nn.embedding import lookup
from tests.examples import BATCH, SCHEMA, build, random_batch, random_jagged, tiny_tables

DIM = 4


def context(schema: Schema = SCHEMA, embedding_dim: int = DIM, dense_tokens: int = 1, **more) -> ContextTokens:
    options = {"dense_tokens": dense_tokens, "dtype": jnp.float32, **more}
    return build(lambda: ContextTokens(schema, embedding_dim, DIM, rngs=nnx.Rngs(0), **options))


@pytest.mark.parametrize("embedding_dim", [DIM, 3])
@pytest.mark.parametrize("dense_tokens", [1, 2])
def test_tokens_are_dense_then_categorical_then_the_mean_of_multi_valued(embedding_dim, dense_tokens):
    module = context(embedding_dim=embedding_dim, dense_tokens=dense_tokens)
    batch, tables = random_batch(), tiny_tables(dim=embedding_dim)
    x = np.asarray(jax.jit(module)(batch, lookup(SCHEMA, batch, tables)))
    assert x.shape == (BATCH, module.tokens, DIM) == (BATCH, dense_tokens + 3, DIM)
    assert (module.project is None) == (embedding_dim == DIM)

    kernel, bias = np.asarray(module.dense.kernel[...]), np.asarray(module.dense.bias[...])
    tags = batch.multi_valued["tags"]
    assert 0 in np.asarray(tags.lengths)[: BATCH - 1]
    for b in range(BATCH):
        dense = (np.asarray(batch.dense[b]) @ kernel + bias).reshape(dense_tokens, DIM)
        user, item = (np.asarray(tables[n])[batch.categorical[b, i]] for i, n in enumerate(("user", "item")))
        start, length = int(tags.row_splits[b]), int(tags.lengths[b])
        ids = np.asarray(tags.values)[start : start + length]
        mean = np.asarray(tables["tags"])[ids].mean(0) if length else np.zeros(embedding_dim)
        tokens = [user, item, mean]
        if module.project is not None:
            tokens = [token @ np.asarray(module.project[i]) for i, token in enumerate(tokens)]
        np.testing.assert_allclose(x[b], [*dense, *tokens], atol=1e-5)


@pytest.mark.parametrize("missing", ["dense", "ids", "multi_valued"])
def test_features_that_a_schema_lacks_have_no_token(missing):
    gone = {
        "dense": {"dense": ()},
        "ids": {"categorical": (), "multi_valued": ()},
        "multi_valued": {"multi_valued": ()},
    }
    schema = dataclasses.replace(SCHEMA, **gone[missing])
    batch = random_batch()
    if missing == "dense":
        batch = dataclasses.replace(batch, dense=batch.dense[:, :0])
    if missing == "ids":
        batch = dataclasses.replace(batch, categorical=batch.categorical[:, :0])
    module = context(schema)
    x = module(batch, lookup(schema, batch, tiny_tables(schema)))
    assert x.shape == (BATCH, {"dense": 3, "ids": 1, "multi_valued": 3}[missing], DIM)


def test_dense_features_are_standardized():
    count = len(SCHEMA.dense)
    mean, std = tuple(1000.0 + i for i in range(count)), tuple(2.0 + i for i in range(count))
    batch, tables = random_batch(), tiny_tables(dim=DIM)
    raw = dataclasses.replace(batch, dense=batch.dense * np.float32([std]) + np.float32([mean]))
    expected = context()(batch, lookup(SCHEMA, batch, tables))
    x = context(dense_moments=Moments(mean, std))(raw, lookup(SCHEMA, raw, tables))
    # A float32 near 1000 holds 1000 + x to 6e-5.
    np.testing.assert_allclose(x, expected, atol=5e-4)


def test_standardized_features_are_cut_off_far_out_and_others_are_not():
    batch, tables = random_batch(), tiny_tables(dim=DIM)
    far = np.zeros_like(batch.dense)
    far[:3, 0] = (99.0, 101.0, -1e17)
    cut = np.clip(far, -100.0, 100.0)
    moments = Moments((0.0,) * len(SCHEMA.dense), (1.0,) * len(SCHEMA.dense))

    def tokens(dense: np.ndarray, moments: Moments | None) -> np.ndarray:
        given = dataclasses.replace(batch, dense=dense)
        return np.asarray(context(dense_moments=moments)(given, lookup(SCHEMA, given, tables)))

    np.testing.assert_array_equal(tokens(far, moments), tokens(cut, None))
    assert np.abs(tokens(far, None)).max() > 1e15


def test_the_number_of_events_is_a_dense_feature():
    batch, tables = random_batch(), tiny_tables(dim=DIM)
    module = context(lengths=("context", "view"))
    x = np.asarray(module(batch, lookup(SCHEMA, batch, tables)))[:, 0]
    kernel, bias = np.asarray(module.dense.kernel[...]), np.asarray(module.dense.bias[...])
    counts = [(np.log1p(np.asarray(batch.events[name].lengths)) - 3) / 2 for name in ("context", "view")]
    inputs = np.concatenate([np.asarray(batch.dense), np.stack(counts, axis=1)], axis=1)
    np.testing.assert_allclose(x, inputs @ kernel + bias, atol=1e-5)


@pytest.mark.parametrize("std", [(), (0.0,) * len(SCHEMA.dense)])
def test_bad_moments_are_refused(std):
    with pytest.raises(ValueError, match=r"dense_moments is Moments\(.*std=" + re.escape(str(std))):
        context(dense_moments=Moments((0.0,) * len(SCHEMA.dense), std))


def test_dense_features_alone_need_no_table():
    schema = Schema("dense", categorical=(), dense=SCHEMA.dense)
    batch = dataclasses.replace(
        random_batch(), categorical=jnp.zeros((BATCH, 0), jnp.int32), multi_valued={}, events={}
    )
    assert context(schema)(batch, lookup(schema, batch, {})).shape == (BATCH, 1, DIM)


def test_a_schema_without_context_is_refused():
    with pytest.raises(ValueError, match="schema 'bare' has no context feature; it needs at least one"):
        context(Schema("bare", categorical=()))


def test_mean_by_example_reads_no_row_without_item():
    feature = random_jagged((2, 0, 9), DIM, rows=40, gaps=np.nan)
    mean, pull = jax.vjp(lambda v: mean_by_example(feature, v), feature.values)
    values = np.asarray(feature.values)
    np.testing.assert_allclose(mean, [values[:2].mean(0), np.zeros(DIM), values[8:17].mean(0)], atol=1e-6)
    expected = np.zeros((40, 1))
    expected[:2], expected[8:17] = 1 / 2, 1 / 9
    np.testing.assert_allclose(pull(jnp.ones_like(mean))[0], np.repeat(expected, DIM, axis=1), rtol=1e-6)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("gate", [False, True])
def test_weight_generation(gate, residual):
    options = {"gate": gate, "residual": residual, "activation": "gelu", "dtype": jnp.float32}
    module = build(lambda: WeightGeneration(5, 3, DIM, rngs=nnx.Rngs(0), **options))
    x = np.random.default_rng(0).normal(size=(2, 5, DIM)).astype(np.float32)
    compressed = z = np.einsum("ns,bnd->bsd", np.asarray(module.compress.kernel[...]), x)
    first, second = ([np.asarray(p[...]) for p in (m.kernel, m.bias)] for m in module.mlp.layers)
    z = z @ first[0] + first[1]
    z = 0.5 * z * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
    z = z @ second[0] + second[1] + (compressed if residual else 0)
    if gate:
        (layer,) = module.gate.layers
        z = 1 / (1 + np.exp(-z * (z @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...]))))
    assert module.compress.bias is None
    np.testing.assert_allclose(jax.jit(module)(jnp.asarray(x)), z, atol=1e-5)
