"""Touched rows: what is read equals a direct lookup, and so do the gradients that come back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kunlun_jax.data.schema import Schema
from kunlun_jax.nn.embedding import Embedded, embed, gather_rows, init_tables, lookup, touch
from tests.examples import BATCH, SCHEMA, random_batch, tiny_tables

DIM = 4


def direct(batch, tables) -> Embedded:
    """Every feature straight from its whole table, feature by feature."""
    ids = {name: events.values["ids"] for name, events in batch.events.items()}
    return Embedded(
        categorical=jnp.stack(
            [tables["user"][batch.categorical[:, 0]], tables["item"][batch.categorical[:, 1]]], axis=1
        ),
        multi_valued={"tags": tables["tags"][batch.multi_valued["tags"].values]},
        events={
            "view": jnp.stack([tables["item"][ids["view"][:, 0]], tables["place"][ids["view"][:, 1]]], axis=1),
            "context": tables["item"][ids["context"][:, 0]][:, None, :],
        },
    )


def weighted(embedded: Embedded) -> jax.Array:
    """A number to which every entry adds with a weight of its own."""
    total = 0.0
    for seed, leaf in enumerate(jax.tree.leaves(embedded)):
        weights = np.random.default_rng(seed).normal(size=leaf.shape).astype(np.float32)
        total += (weights * leaf * leaf).sum()
    return total


def test_small_tables_are_taken_whole_and_large_ones_by_unique_rows():
    batch = random_batch()
    touched = jax.jit(lambda b: touch(SCHEMA, b))(batch)
    assert set(touched) == {"user", "item", "tags", "place"}
    assert touched["item"].rows is None
    assert set(touched["item"].slots) == {"context/item", "events/view/item", "events/context/item"}
    user = np.asarray(touched["user"].rows)
    distinct = np.unique(batch.categorical[:, 0])
    assert user.shape == (batch.size,) and user.dtype == np.int32
    np.testing.assert_array_equal(user, [*distinct, *[501] * (batch.size - len(distinct))])
    np.testing.assert_array_equal(user[touched["user"].slots["context/user"]], batch.categorical[:, 0])


def sized(items: int) -> Schema:
    """`SCHEMA` with another size of the table that three features share; ids stay below 9."""

    def resize(features):
        return tuple(dataclasses.replace(f, size=items) if f.name == "item" else f for f in features)

    events = tuple(dataclasses.replace(event, categorical=resize(event.categorical)) for event in SCHEMA.events)
    return dataclasses.replace(SCHEMA, categorical=resize(SCHEMA.categorical), events=events)


@pytest.mark.parametrize("items", [9, 900])
def test_embeddings_equal_a_direct_lookup(items):
    schema, batch = sized(items), random_batch()
    tables = tiny_tables(schema, dim=DIM)
    embedded = jax.jit(lambda b, t: lookup(schema, b, t))(batch, tables)
    jax.tree.map(np.testing.assert_array_equal, embedded, direct(batch, tables))


@pytest.mark.parametrize("items", [9, 900])
def test_gradient_of_rows_put_back_equals_that_of_tables(items):
    schema, batch = sized(items), random_batch()
    tables = tiny_tables(schema, dim=DIM)
    # Repeated ids in a large table, besides those that gap rows repeat.
    batch = dataclasses.replace(batch, categorical=batch.categorical.at[3, 0].set(batch.categorical[1, 0]))

    @jax.jit
    def by_rows(tables):
        touched = touch(schema, batch)
        rows = gather_rows(tables, touched)
        gradient = jax.grad(lambda r: weighted(embed(schema, batch, touched, r)))(rows)
        return {
            name: gradient[name]
            if part.rows is None
            else jnp.zeros_like(tables[name]).at[part.rows].add(gradient[name], mode="drop")
            for name, part in touched.items()
        }

    dense = jax.jit(jax.grad(lambda t: weighted(direct(batch, t))))(tables)
    rows = by_rows(tables)
    assert {name: bool(np.abs(g).max() > 0) for name, g in rows.items()} == dict.fromkeys(tables, True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), rows, dense)


@pytest.mark.parametrize("rows", [BATCH - 1, BATCH, BATCH + 1])
def test_both_ways_to_touch_agree_at_the_size_where_one_takes_over(rows):
    user = dataclasses.replace(SCHEMA.categorical[0], size=rows - 1)
    schema = dataclasses.replace(SCHEMA, categorical=(user,), multi_valued=(), events=())
    ids = jnp.asarray(np.random.default_rng(0).integers(0, rows, (BATCH, 1)), jnp.int32)
    batch = dataclasses.replace(random_batch(), categorical=ids, multi_valued={}, events={})
    table = tiny_tables(schema, dim=DIM)["user"]
    np.testing.assert_array_equal(lookup(schema, batch, {"user": table}).categorical, table[ids])
    assert (touch(schema, batch)["user"].rows is None) == (rows <= BATCH)


def test_ids_past_a_table_read_its_last_row_and_never_the_next_table():
    batch, tables = random_batch(), tiny_tables(dim=DIM)
    beyond = dataclasses.replace(batch, categorical=batch.categorical.at[:, 1].set(1000))
    found = lookup(SCHEMA, beyond, tables).categorical[:, 1]
    np.testing.assert_array_equal(found, np.broadcast_to(tables["item"][-1], found.shape))


def test_context_and_each_event_type_are_read_by_one_gather():
    batch, tables = random_batch(), tiny_tables(dim=DIM)

    def read(rows):
        return embed(SCHEMA, batch, touched, rows)

    touched = touch(SCHEMA, batch)
    gathers = str(jax.make_jaxpr(read)(gather_rows(tables, touched))).count(" gather[")
    assert gathers == 1 + len(SCHEMA.multi_valued) + len(SCHEMA.events)


def test_an_event_type_that_the_batch_lacks_is_left_out():
    batch, tables = random_batch(), tiny_tables(dim=DIM)
    batch = dataclasses.replace(batch, events={"context": batch.events["context"]})
    embedded = lookup(SCHEMA, batch, {n: t for n, t in tables.items() if n != "place"})
    assert set(embedded.events) == {"context"}


def test_an_event_type_without_ids_has_no_embeddings():
    events = (dataclasses.replace(SCHEMA.events[0], categorical=()), SCHEMA.events[1])
    schema = dataclasses.replace(SCHEMA, events=events)
    embedded = lookup(schema, random_batch(), tiny_tables(schema, dim=DIM))
    assert embedded.events["view"].shape == (64, 0, DIM)


def test_new_tables():
    tables = jax.jit(lambda key: init_tables(SCHEMA, 64, scale=0.05, key=key))(jax.random.key(0))
    assert {name: table.shape for name, table in tables.items()} == {
        "user": (501, 64),
        "item": (10, 64),
        "tags": (6, 64),
        "place": (401, 64),
    }
    assert float(tables["user"].std()) == pytest.approx(0.05, rel=0.05)
    assert not np.array_equal(tables["user"][:6], tables["tags"])
