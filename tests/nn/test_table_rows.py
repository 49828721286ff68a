"""Where rows of tables lie: every id in a place of its own, dealt in turn, the same on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kunlun_jax.nn.embedding import init_tables
from kunlun_jax.nn.table_rows import LARGE, PARTS, dealt, make_parts, place, stored_rows
from kunlun_jax.parallel import DATA, MeshConfig, make_mesh
from tests.examples import SCHEMA


@pytest.mark.parametrize("rows", [1, LARGE - 1, LARGE, LARGE + 1, LARGE + PARTS])
def test_every_row_has_a_place_of_its_own(rows):
    places = place(np.arange(rows), rows)
    assert len(np.unique(places)) == rows and places.max() < stored_rows(rows) < rows + PARTS
    if rows < LARGE:
        np.testing.assert_array_equal(places, np.arange(rows))
        return
    # Any run of ids is spread evenly over any number of devices.
    for devices in (2, 64, PARTS):
        owners = place(np.arange(5 * PARTS), rows) // (stored_rows(rows) // devices)
        np.testing.assert_array_equal(np.bincount(owners, minlength=devices), 5 * PARTS // devices)


def test_only_large_tables_are_dealt():
    assert dealt(SCHEMA) == []
    assert dealt(SCHEMA.resized("user", LARGE)) == ["user"]


def test_the_last_row_of_the_largest_table():
    rows = 2**31 - PARTS
    assert place(np.array([rows - 1], np.int32), rows)[0] == rows - 1
    assert int(place(jnp.int32(rows - 1), rows)) == rows - 1


def test_parts_do_not_depend_on_who_makes_them():
    def make(key, rows):
        return jax.random.normal(key, (rows, 2))

    whole = make_parts(make, jax.random.key(0), LARGE)
    half = make_parts(make, jax.random.key(0), LARGE, first=PARTS // 2, parts=PARTS // 2)
    np.testing.assert_array_equal(half, whole[LARGE // 2 :])
    assert len(np.unique(np.asarray(whole[:, 0]).reshape(PARTS, -1)[:, 0])) == PARTS


def test_tables_are_made_where_they_lie():
    schema = SCHEMA.resized("user", LARGE + 1)
    made = {
        devices: init_tables(schema, 4, scale=0.5, key=jax.random.key(1), mesh=make_mesh(MeshConfig(devices)))
        for devices in (1, 4)
    }
    assert made[1]["user"].shape == (stored_rows(LARGE + 1), 4)
    for name, table in made[1].items():
        np.testing.assert_array_equal(made[4][name], table)
    assert float(made[1]["user"].std()) == pytest.approx(0.5, rel=0.01)
    parts = made[4]["user"].addressable_shards
    assert {part.data.shape for part in parts} == {(stored_rows(LARGE + 1) // 4, 4)}
    assert made[4]["user"].sharding.spec[0] == DATA
