"""The whole model: what it may depend on, what it must depend on, and what a config field changes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kunlun_jax.batch import Jagged
from kunlun_jax.data.pack import pack
from kunlun_jax.models.config import EventConfig, layer_plan
from kunlun_jax.models.kunlun import Kunlun
from kunlun_jax.nn.attention import WindowAttention
from kunlun_jax.nn.embedding import embed, gather_rows, init_tables, lookup, touch
from kunlun_jax.nn.rotary import RoteConfig
from tests.examples import (
    BATCH,
    CAPACITY,
    CONTEXTS,
    SCHEMA,
    VIEWS,
    random_batch,
    random_jagged,
    random_rows,
    spoil_gaps,
    take_rows,
    tiny_tables,
)
from tests.models.tiny import CONFIG, EVENT, tiny_model

REFERENCE = {"implementation": "reference"}
EXAMPLES = len(VIEWS)


def logits(model: Kunlun, batch=None, **options) -> np.ndarray:
    batch = random_batch() if batch is None else batch
    tables = tiny_tables(dim=model.embedding_dim)
    return np.asarray(model(batch, lookup(model.schema, batch, tables), **options))


@functools.cache
def base_model() -> Kunlun:
    return tiny_model(**REFERENCE)


@functools.cache
def base_logits() -> np.ndarray:
    return logits(base_model())


QUICK = {"xla_backend_optimization_level": 0}
"""Of the compiler: most of the time of a test on a tiny model goes there."""


def compiled(function):
    """`jax.jit` that spares the optimization."""
    return jax.jit(function, compiler_options=QUICK)


@functools.cache
def gradient_function():
    """Of a loss on all logits, to parameters and to the rows of the tables, compiled once."""
    model = base_model()
    graph, params = nnx.split(model, nnx.Param)

    def loss(params, tables, batch):
        touched = touch(SCHEMA, batch)
        rows = gather_rows(tables, touched)
        return jnp.square(nnx.merge(graph, params)(batch, embed(SCHEMA, batch, touched, rows))).sum()

    gradient = compiled(jax.grad(loss, argnums=(0, 1)))
    return lambda batch: gradient(params, tiny_tables(), batch)


@functools.cache
def xla_logits():
    """The default implementation, compiled once."""
    model = tiny_model(implementation="xla")
    forward = compiled(lambda batch, tables: model(batch, lookup(SCHEMA, batch, tables)))
    return lambda batch: np.asarray(forward(batch, tiny_tables()))


def shapes(model: Kunlun) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(model, nnx.Param))
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}


def test_logits_of_every_task_are_finite_float32():
    by_reference = base_logits()
    assert by_reference.shape == (BATCH, 2) and by_reference.dtype == np.float32
    assert np.isfinite(by_reference).all() and by_reference.std(axis=0).min() > 1e-3


def test_implementations_agree_compiled_or_not():
    np.testing.assert_allclose(xla_logits()(random_batch()), base_logits(), atol=1e-5)


def test_order_of_event_types_does_not_depend_on_split_and_merge():
    """A dict of modules comes back from them in another order: tokens must not."""
    batch, tables = random_batch(), tiny_tables()
    config = dataclasses.replace(CONFIG, **REFERENCE)

    def orders(batch):
        model = Kunlun(SCHEMA, config, base_rate=(0.2, 0.02), rngs=nnx.Rngs(0))
        assert list(model.event_input) == ["view", "context"]
        for either in (model, nnx.merge(*nnx.split(model))):
            for _, events, _ in either.states(batch, lookup(SCHEMA, batch, tables)):
                yield list(events)

    found = []
    jax.eval_shape(lambda b: found.extend(orders(b)), batch)
    assert found == [["context", "view"]] * 2 * (CONFIG.layers + 1)


def test_nan_in_rows_without_event_changes_neither_logits_nor_gradients():
    clean, spoilt = random_batch(), spoil_gaps(random_batch())
    assert np.isnan(spoilt.events["view"].values["age"]).any() and np.isnan(spoilt.events["view"].values["dense"]).any()
    for run in (xla_logits(), gradient_function()):
        expected = run(clean)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
        jax.tree.map(np.testing.assert_array_equal, run(spoilt), expected)


def test_every_parameter_and_table_is_trained():
    """A leaf without a gradient would be a part that nothing reads."""
    by_params, by_tables = gradient_function()(random_batch())
    still = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path((by_params, by_tables))
        if not np.abs(leaf).max() > 0
    ]
    assert still == []


def test_nobody_has_a_history():
    batch = random_batch((0,) * EXAMPLES, (0,) * EXAMPLES)
    for run in (xla_logits(), gradient_function()):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run(batch)))


def test_a_logit_depends_on_its_own_example_alone():
    rows = random_rows()

    def of(index, source=rows) -> np.ndarray:
        batch, _ = pack(SCHEMA, take_rows(source, index), BATCH, CAPACITY)
        all_rows = xla_logits()(jax.tree.map(jnp.asarray, batch))
        assert np.isfinite(all_rows).all()  # those that only fill the batch as well
        return all_rows[: len(index)]

    before = of(range(EXAMPLES))
    permuted = np.random.default_rng(0).permutation(EXAMPLES)
    np.testing.assert_allclose(of(permuted), before[permuted], rtol=1e-5, atol=1e-5)
    for example in range(EXAMPLES):  # alone, with rows that only fill the batch
        np.testing.assert_allclose(of([example])[0], before[example], rtol=1e-5, atol=1e-5)
    assert np.abs(of(range(EXAMPLES), random_rows(seed=1)) - before).max(axis=1).min() > 1e-3


def test_each_event_field_reaches_the_logits_of_its_example():
    batch = random_batch()
    before = xla_logits()(batch)
    for name, lengths in (("view", VIEWS), ("context", CONTEXTS)):
        events = batch.events[name]
        for field in ("ids", "dense", "age"):
            if not events.values[field].size:
                continue
            example = int(np.argmax(lengths))
            row = int(events.row_splits[example]) + lengths[example] // 2
            change = {"ids": 1, "dense": 7.0, "age": 1e6}[field]
            changed = events.replace(events.values | {field: events.values[field].at[row].add(change)})
            other = dataclasses.replace(batch, events=batch.events | {name: changed})
            moved = np.abs(xla_logits()(other) - before)
            assert moved[example].max() > 1e-4, (name, field)
            np.testing.assert_allclose(np.delete(moved, example, axis=0), 0, atol=1e-6)


def test_a_new_model_predicts_about_the_base_rate():
    rates = (0.2, 0.02)
    config = dataclasses.replace(CONFIG, embedding_scale=0.05, layers=1, experts=1, skip_events=("*",))

    @compiled
    def predict(batch):
        model = Kunlun(SCHEMA, config, base_rate=rates, rngs=nnx.Rngs(0))
        tables = init_tables(model.schema, config.embedding_dim, scale=config.embedding_scale, key=jax.random.key(0))
        return model(batch, lookup(model.schema, batch, tables)), model.head.layers[-1].bias[...]

    predicted, bias = predict(random_batch())
    np.testing.assert_allclose(1 / (1 + np.exp(-np.asarray(bias))), rates, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(predicted).mean(0), bias, atol=1.0)


@pytest.mark.parametrize("rate", [(0.2,), (0.2, 0.0), (0.2, 1.0), (0.2, 0.1, 0.1), (0.2, float("nan"))])
def test_bad_base_rates(rate):
    with pytest.raises(ValueError, match=r"base_rate is \(.*one rate inside \(0, 1\) for each of \('click', 'buy'\)"):
        nnx.eval_shape(lambda: Kunlun(SCHEMA, CONFIG, base_rate=rate, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(("skip", "left"), [(("*",), ()), (("view",), ("context",)), (("context",), ("view",))])
def test_skipped_events_are_not_read(skip, left):
    model = tiny_model(skip_events=skip, **REFERENCE)
    assert tuple(event.name for event in model.schema.events) == left
    before, other = random_batch(), random_batch(seed=1)
    skipped = {name: other.events[name] if name not in left else events for name, events in before.events.items()}
    np.testing.assert_array_equal(logits(model, dataclasses.replace(before, events=skipped)), logits(model, before))
    kept = {name: before.events[name] for name in left}
    np.testing.assert_array_equal(logits(model, dataclasses.replace(before, events=kept)), logits(model, before))
    assert set(model.event_input) == set(left)


def test_an_event_type_that_the_schema_lacks():
    with pytest.raises(ValueError, match=r"model\.skip_events names \['like'\].*\['view', 'context'\]"):
        tiny_model(skip_events=("like",))


def test_an_event_type_with_the_name_of_a_method_of_nnx_dict():
    event = dataclasses.replace(SCHEMA.events[0], name="items")
    schema = dataclasses.replace(SCHEMA, events=(event, *SCHEMA.events[1:]))
    with pytest.raises(ValueError, match=r"event types \['items'\].*rename them"):
        Kunlun(schema, CONFIG, base_rate=(0.1, 0.2), rngs=nnx.Rngs(params=jax.random.key(0)))


def test_layers_hold_what_the_plan_says():
    for changes in (
        {},
        {"final_pool": False},
        {"pattern": ("pool+ffn+attention",)},
        {"events": {"view": dataclasses.replace(EVENT, layers=3)}},
    ):
        model = tiny_model(**changes)
        config = dataclasses.replace(CONFIG, **changes)
        for name in ("view", "context"):
            held = [
                {
                    part
                    for part, blocks in (("pool", x.pool), ("ffn", x.ffn), ("attention", x.attention))
                    if name in blocks
                }
                for x in model.layers
            ]
            assert held == list(layer_plan(config, config.for_event(name)))


def rote(**changes) -> dict:
    return {"rote": dataclasses.replace(RoteConfig(), **changes)}


SAME_PARAMETERS = {
    "rote.position": rote(position=False),
    "rote.time": rote(time=False),
    "rote.reading": rote(reading="gap"),
    "rote.t_scale": rote(t_scale=6000.0),
    "rote.base": rote(base=10.0),
    "rote.time_base": rote(time_base=2.0),
    "window": {"event": dataclasses.replace(EVENT, window=1)},
    "ffn_activation": {"ffn_activation": "silu"},
    "ffn_scale": {"ffn_scale": "post"},
    "ffn_tau": {"ffn_tau": 2.0},
    "order": {"order": "pool_first"},
    "summary_residual": {"summary_residual": False},
    "pool_counts": {"pool_counts": True},
    "unit_products": {"unit_products": False},
    "tied_events": {"tied_events": False},
    "activation": {"activation": "silu"},
}
OF_THE_CONTEXT = ("activation", "summary_residual", "unit_products")
"""Those that change what becomes of an example without a history too."""


@pytest.mark.parametrize("field", SAME_PARAMETERS)
def test_readings_on_the_same_parameters_change_the_logits(field):
    model = tiny_model(**REFERENCE, **SAME_PARAMETERS[field])
    assert shapes(model) == shapes(base_model())
    moved = np.abs(logits(model) - base_logits())
    assert moved.max() > 1e-4
    if field not in OF_THE_CONTEXT:
        np.testing.assert_allclose(moved[4], 0, atol=1e-6)
        assert VIEWS[4] == CONTEXTS[4] == 0


@pytest.mark.parametrize(("where", "pre", "post"), [("pre", 0.25, 1.0), ("post", 1.0, 0.25)])
def test_the_ffn_is_scaled_by_one_over_tau_in_one_place(where, pre, post):
    for layer in tiny_model(ffn_scale=where, ffn_tau=4.0).layers:
        for block in layer.ffn.values():
            assert (block.pre_scale, block.post_scale) == (pre, post)


OTHER_PARAMETERS = {
    "event_input": {"event_input": "mlp"},
    "age_feature": {"age_feature": False},
    "rank_feature": {"rank_feature": False},
    "pool_ranks": {"pool_ranks": False},
    "summary_gate": {"summary_gate": True},
    "pattern": {"pattern": ("pool+ffn+attention",)},
    "final_pool": {"final_pool": False},
    "pooling": {"pooling": "pma"},
    "pooling without SumKronLinear": {"pooling": "seeds"},
    "ffn_kind": {"ffn_kind": "plain"},
    "dense_tokens": {"dense_tokens": 2},
    "token_norm": {"token_norm": False},
    "fm_products": {"fm_products": "pairs"},
    "experts": {"experts": 3},
    "width of one type": {"events": {"context": dataclasses.replace(EVENT, dim=12)}},
    "embedding_dim": {"embedding_dim": 8},
    "sizes of interaction": {
        "summary_tokens": 4,
        "fm_tokens": 3,
        "linear_tokens": 5,
        "fm_rank": 3,
        "fm_hidden": (8, 9),
    },
    "sizes of events": {"event": EventConfig(dim=6, heads=1, tokens=3, seeds=6, layers=3, ffn_width=5, kron_rank=1)},
    "head_hidden": {"head_hidden": ()},
    "layers": {"layers": 1},
    "interaction_context": {"interaction_context": "summary"},
    "head_reads": {"head_reads": "last"},
    "history_lengths": {"history_lengths": False},
    "ffn_free_values": {"ffn_free_values": 0.0},
    "ffn_layer_scale": {"ffn_layer_scale": 0.1},
}


@pytest.mark.parametrize("order", ["ffn_first", "pool_first"])
def test_what_pooling_reads(order):
    """By Figure 1 the events of its own layer after the PersonalizedFFN, so the context of the same layer."""
    layer = tiny_model(order=order, **REFERENCE).layers[0]
    events = {name: random_jagged((3, 9), EVENT.dim, rows=32, seed=i) for i, name in enumerate(("context", "view"))}
    x_sum = jnp.asarray(np.random.default_rng(0).normal(size=(2, CONFIG.summary_tokens, CONFIG.dim)), jnp.float32)
    after, pooled = layer.personalized(events, x_sum)
    expected = layer.ffn["view"](events["view"], x_sum)
    np.testing.assert_array_equal(after["view"].values, expected)
    np.testing.assert_array_equal(pooled["view"].values, expected if order == "ffn_first" else events["view"].values)


def test_aligned_starts_where_candidate_and_history_share_coordinates():
    """Score of GDPA and product of pooled history and candidate see a shared item; the random start does not."""
    found = {}
    for aligned in (True, False):
        config = dataclasses.replace(
            CONFIG, dim=32, embedding_dim=32, event=dataclasses.replace(EVENT, dim=32), aligned=aligned, **REFERENCE
        )
        model = Kunlun(SCHEMA, config, base_rate=(0.2, 0.02), rngs=nnx.Rngs(0))
        pool, to_context = model.layers[0].pool["context"], model.layers[0].to_context["context"]
        table = np.random.default_rng(0).normal(size=(9, 32)).astype(np.float32)
        events = Jagged(jnp.asarray(np.repeat(table, 8, axis=0)), jnp.arange(0, 73, 8), jnp.full(9, 8))
        h = np.asarray(to_context(pool(events))).mean(1)
        products = h @ table.T
        own = np.diag(products)
        others = products[~np.eye(9, dtype=bool)]
        found[aligned] = abs(own.mean() - others.mean()) / others.std()
    assert found[True] > 2.5 > 1.0 > found[False], found


@pytest.mark.parametrize("field", OTHER_PARAMETERS)
def test_readings_with_other_parameters_build_and_run(field):
    model = tiny_model(**REFERENCE, **OTHER_PARAMETERS[field])
    assert shapes(model) != shapes(base_model())
    batch = random_batch()
    tables = tiny_tables(dim=model.embedding_dim)
    assert jax.eval_shape(lambda b: model(b, lookup(SCHEMA, b, tables)), batch).shape == (BATCH, 2)


def test_without_age_feature_and_time_the_age_is_not_read():
    changes = {"age_feature": False, **rote(time=False)}
    model, batch = tiny_model(**REFERENCE, **changes), random_batch()
    events = {n: e.replace(e.values | {"age": 3 * e.values["age"] + 5}) for n, e in batch.events.items()}
    np.testing.assert_array_equal(logits(model, dataclasses.replace(batch, events=events)), logits(model, batch))


def test_the_gap_reading_ignores_a_later_request():
    """Gaps between events stay as they are when a request comes later; ages do not."""
    batch = random_batch()
    later = {n: e.replace(e.values | {"age": e.values["age"] + 4096.0}) for n, e in batch.events.items()}
    later = dataclasses.replace(batch, events=later)
    moved = {}
    for reading in ("gap", "age"):
        model = tiny_model(age_feature=False, **REFERENCE, **rote(reading=reading))
        moved[reading] = np.abs(logits(model, later) - logits(model, batch)).max()
    assert moved["gap"] < 1e-5 < 1e-4 < moved["age"]


def test_bfloat16_computes_in_bfloat16_on_float32_parameters():
    rounded = tiny_model(dtype="bfloat16", **REFERENCE)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(rounded, nnx.Param))} == {"float32"}
    tables = tiny_tables()

    @compiled
    def run(batch):
        embedded = lookup(SCHEMA, batch, tables)
        states = [
            (x, *history.values(), *(e.values for e in events.values()))
            for x, events, history in rounded.states(batch, embedded)
        ]
        assert {leaf.dtype.name for leaf in jax.tree.leaves(states)} == {"bfloat16"}
        return rounded(batch, embedded)

    batch = random_batch()
    b = run(batch)
    assert b.dtype == np.float32
    assert 0 < np.abs(np.asarray(b) - base_logits()).max() < 0.1


def test_dropout_acts_only_with_a_key_and_follows_it():
    model, plain = tiny_model(dropout=0.5, **REFERENCE), base_model()
    np.testing.assert_array_equal(logits(model), logits(plain))

    def dropped(seed: int, which: Kunlun = model) -> np.ndarray:
        return logits(which, dropout=nnx.Rngs(dropout=seed))

    np.testing.assert_array_equal(dropped(0), dropped(0))
    assert np.abs(dropped(0) - dropped(1)).max() > 1e-3
    assert np.abs(dropped(0) - logits(model)).max() > 1e-3
    np.testing.assert_array_equal(dropped(0, plain), logits(plain))


def test_an_unknown_implementation():
    with pytest.raises(ValueError, match="implementation='cuda' does not exist"):
        logits(tiny_model(implementation="cuda"))


@pytest.mark.parametrize("reads", ["all", "last"])
def test_states_end_in_what_the_head_reads(reads):
    model, batch = tiny_model(head_reads=reads, **REFERENCE), random_batch()
    states = list(model.states(batch, lookup(SCHEMA, batch, tiny_tables())))
    assert len(states) == CONFIG.layers + 1 and states[0][2] == {}
    x = jnp.concatenate([x for x, _, _ in (states[1:] if reads == "all" else states[-1:])], axis=1)
    np.testing.assert_array_equal(model.head(x.reshape(BATCH, -1)), logits(model))
    assert isinstance(model.layers[1].attention["view"], WindowAttention)
    # CompSkip: the layer of attention keeps H and changes events, the layer of the FFN made both anew.
    for name in ("view", "context"):
        np.testing.assert_array_equal(states[2][2][name], states[1][2][name])
        assert np.abs(np.asarray(states[3][2][name]) - states[2][2][name]).max() > 1e-4
        assert states[3][1][name] is states[2][1][name]
