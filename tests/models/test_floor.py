"""DLRM, DCNv2, DIN and the pooled product against their equations in NumPy; their configs' refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kunlun_jax.data.pack import pack
from kunlun_jax.models.hstu import HSTUConfig
from kunlun_jax.models.interformer import InterFormerConfig
from kunlun_jax.models.wukong import WukongConfig
from kunlun_jax.nn.embedding import lookup
from tests.examples import BATCH, CAPACITY, SCHEMA, random_batch, random_rows, tiny_tables
from tests.models.systems import QUICK, TINY, tiny_system


def run(name: str, **changes):
    """Model, embeddings, inputs and logits of the random batch."""
    model, batch = tiny_system(name, **changes), random_batch()
    tables = tiny_tables(model.schema, dim=model.embedding_dim)

    def forward(batch):
        embedded = lookup(model.schema, batch, tables)
        return embedded, model.inputs(batch, embedded), model(batch, embedded)

    embedded, (x, events, _), logits = jax.jit(forward, compiler_options=QUICK)(batch)
    return model, embedded, np.asarray(x), events, np.asarray(logits)


def relu(x):
    return np.maximum(x, 0)


def silu(x):
    return x / (1 + np.exp(-x))


def mlp(module, x, act=relu):
    """The module by its weights."""
    *hidden, last = module.layers
    for layer in hidden:
        x = act(x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...]))
    return x @ np.asarray(last.kernel[...]) + np.asarray(last.bias[...])


def histories(events) -> list[list[np.ndarray]]:
    """Rows of each example of each event type, by name."""
    found = []
    for _, s in sorted(events.items()):
        starts, lengths = np.asarray(s.row_splits)[:-1], np.asarray(s.lengths)
        found.append([np.asarray(s.values)[a : a + n] for a, n in zip(starts, lengths, strict=True)])
    return found


def means(events) -> np.ndarray:
    """The mean token of each event type, zeros for none."""
    return np.stack([[s.sum(0) / max(len(s), 1) for s in each] for each in histories(events)], axis=1)


def test_dlrm_is_its_equation():
    model, _, x, events, logits = run("dlrm")
    z = mlp(model.bottom, x[:, 0])
    tokens = np.concatenate([z[:, None], x[:, 1:], means(events)], axis=1)
    count = tokens.shape[1]
    dots = [(tokens[:, i] * tokens[:, j]).sum(-1) for i in range(count) for j in range(i + 1, count)]
    expected = mlp(model.head, np.concatenate([z, np.stack(dots, axis=1)], axis=1))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"cross_rank": 3}, {"structure": "stacked", "head_hidden": (5,)}], ids=str)
def test_dcnv2_is_its_equation(changes):
    model, _, x, events, logits = run("dcnv2", **changes)
    x0 = np.concatenate([x, means(events)], axis=1).reshape(len(x), -1)
    crossed = x0
    for index, layer in enumerate(model.cross.maps):
        inner = crossed @ np.asarray(model.cross.down[index].kernel[...]) if "cross_rank" in changes else crossed
        crossed = x0 * (inner @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])) + crossed
    if "structure" in changes:
        expected = mlp(model.head, relu(mlp(model.deep, crossed)))
    else:
        expected = mlp(model.head, np.concatenate([crossed, relu(mlp(model.deep, x0))], axis=1))
    np.testing.assert_allclose(logits, expected, rtol=2e-4, atol=2e-4)


def shared_fields(model, embedded, events) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Of each event type, by name: the candidate's item and the items of each history; both types have it first."""
    item = np.asarray(embedded.categorical)[:, 1]
    found = []
    for name in sorted(events):
        assert model.schema.matches(name) == ((1, 0),)
        (rows,) = histories({name: events[name].replace(embedded.events[name][:, 0])})
        found.append((item, rows))
    return found


def test_din_is_its_equation():
    """The candidate is the item, whose table both event types read."""
    model, embedded, x, events, logits = run("din")
    found = [x.reshape(len(x), -1)]
    shared = shared_fields(model, embedded, events)
    for name, each, (item, fields) in zip(sorted(events), histories(events), shared, strict=True):
        v = np.zeros((len(x), x.shape[-1]))
        for example, (s, e) in enumerate(zip(each, fields, strict=True)):
            c = np.broadcast_to(item[example], e.shape)
            a = mlp(model.attention[name].unit, np.concatenate([e, c, e - c, e * c, s], axis=1), silu)
            v[example] = (a * s).sum(0)
        found.append(v)
    np.testing.assert_allclose(logits, mlp(model.head, np.concatenate(found, axis=1), silu), rtol=2e-4, atol=2e-4)


def test_pooled_product_is_its_equation():
    model, embedded, x, events, logits = run("pooled_product", activation="relu")
    batch = random_batch()

    def squash(x):
        return np.sign(x) * np.log1p(np.abs(x))

    found = [x.reshape(len(x), -1)]
    shared = shared_fields(model, embedded, events)
    for name, each, (item, fields) in zip(sorted(events), histories(events), shared, strict=True):
        packed = batch.events[name]
        age, dense = (histories({"": packed.replace(packed.values[key])})[0] for key in ("age", "dense"))
        products, plain = [], []
        for example, (s, e) in enumerate(zip(each, fields, strict=True)):
            old = (np.log1p(age[example] / 3600)[:, None] - 5.5) / 2
            rank = (np.log1p(np.arange(len(s))[::-1, None]) - 3) / 2
            inputs = np.concatenate([old, dense[example], rank], axis=1)
            gates = 1 / (1 + np.exp(-mlp(model.gate[name], inputs)))
            products.append((squash(gates.T @ e) * item[example]).reshape(-1))
            plain.append(squash(gates.T @ s).reshape(-1))
        found += [np.stack(products), np.stack(plain)]
    np.testing.assert_allclose(logits, mlp(model.head, np.concatenate(found, axis=1)), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["din", "pooled_product"])
def test_a_type_that_shares_no_table_is_read_all_the_same(name):
    place = dataclasses.replace(SCHEMA.events[0], categorical=SCHEMA.events[0].categorical[1:])
    model = tiny_system(name, dataclasses.replace(SCHEMA, events=(place,)))
    assert model.schema.matches("view") == ()
    rows = random_rows()
    view = rows.events["view"]
    rows = dataclasses.replace(rows, events={"view": dataclasses.replace(view, ids=view.ids[:, 1:])})
    capacity = {name: CAPACITY[name] for name in ("view", "tags")}
    batch = jax.tree.map(jnp.asarray, pack(model.schema, rows, BATCH, capacity)[0])
    tables = tiny_tables(model.schema, dim=model.embedding_dim)
    logits = model(batch, lookup(model.schema, batch, tables))
    assert np.isfinite(logits).all()


BAD = [
    ("dlrm", {"dense_tokens": 2}, "dense_tokens is 2"),
    ("dcnv2", {"cross_layers": 0}, "cross_layers is 0; it must be at least 1"),
    ("dcnv2", {"deep_hidden": ()}, "deep_hidden is empty"),
    ("din", {"dropout": 1.0}, r"dropout is 1\.0; it must lie in \[0, 1\)"),
    ("pooled_product", {"gates": 0}, "gates is 0; it must be at least 1"),
    ("wukong", {"layers": 0}, "layers is 0; it must be at least 1"),
    ("wukong", {"history_heads": 3}, "dim is 8, history_heads 3"),
    ("interformer", {"pma_tokens": 0}, "pma_tokens is 0; it must be at least 1"),
    ("interformer", {"heads": 8}, "dim is 8, heads 8;"),
    ("hstu", {"heads": 3}, "dim is 8, heads 3; a head needs a whole width"),
    ("hstu", {"sequence_scale": 0.0}, r"sequence_scale is 0\.0; it must be above 0"),
    ("hstu", {"block_dropout": -0.1}, r"block_dropout is -0\.1"),
    ("onetrans", {"layers": 0}, "layers is 0; it must be at least 1"),
    ("onetrans", {"heads": 3}, "dim is 8, heads 3; a head needs a whole width"),
    ("onetrans", {"ffn_multiple": 0.1}, r"ffn_multiple is 0\.1; times dim it must be at least 1"),
    ("onetrans", {"first_queries": -1}, "first_queries is -1; it must be at least 0"),
]


@pytest.mark.parametrize(("name", "changes", "message"), BAD)
def test_configs_that_cannot_be_are_refused(name, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY[name], **changes)


@pytest.mark.parametrize("config", [WukongConfig(), InterFormerConfig(), HSTUConfig()], ids=lambda c: type(c).__name__)
def test_an_event_type_that_the_schema_lacks(config):
    with pytest.raises(ValueError, match=r"model\.skip_events names \['like'\]; .* are \['view'\]"):
        dataclasses.replace(config, skip_events=("like", "*")).event_types(("view",))


def test_dropout_of_an_hstu_block_acts_only_with_a_key():
    model, batch = tiny_system("hstu", block_dropout=0.5, implementation="reference"), random_batch()
    tables = tiny_tables(model.schema, dim=model.embedding_dim)

    def forward(seed: int | None = None) -> np.ndarray:
        def run(batch):
            key = None if seed is None else nnx.Rngs(dropout=seed)
            return model(batch, lookup(SCHEMA, batch, tables), dropout=key)

        return np.asarray(jax.jit(run, compiler_options=QUICK)(batch))

    plain = forward()
    assert np.abs(forward(0) - plain).max() > 1e-3 and np.abs(forward(0) - forward(1)).max() > 1e-3
    np.testing.assert_allclose(plain, run("hstu")[-1], atol=1e-5)


@pytest.mark.parametrize(("name", "changes"), [("hstu", {}), ("onetrans", {"last_norm": False})])
def test_how_much_a_new_model_reads_of_events_is_where_branches_start(name, changes):
    batch = random_batch()

    def largest_gradient(start: float) -> float:
        """Of the logits of a new model by an event's embeddings."""
        config = dataclasses.replace(TINY[name], branch_start=start, layers=1, implementation="reference", **changes)
        model = config.build(SCHEMA, base_rate=(0.2, 0.02), rngs=nnx.Rngs(0))
        embedded = lookup(SCHEMA, batch, tiny_tables(model.schema, dim=model.embedding_dim))

        def total(events):
            return model(batch, dataclasses.replace(embedded, events=events)).sum()

        gradients = jax.jit(jax.grad(total), compiler_options=QUICK)(embedded.events)
        return max(float(np.abs(g).max()) for g in jax.tree.leaves(gradients))

    whole = largest_gradient(1.0)
    assert largest_gradient(0.0) == 0 < 1e-3 < whole
    assert 0.002 < largest_gradient(0.01) / whole < 0.05
