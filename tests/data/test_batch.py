"""`Jagged` and `Batch` as pytrees, and the row arithmetic of `Jagged` against plain loops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kunlun_jax.batch import Batch, Jagged
from tests.examples import BATCH, CAPACITY, VIEWS, random_batch, random_jagged

LAYOUTS = [(0,), (8, 8), (0, 3, 0, 0, 9, 16, 1, 0), (24,)]


def owners(lengths: tuple[int, ...], rows: int) -> list[tuple[int, int, bool]]:
    """(example, position, holds an event) of each row; examples take whole blocks of eight rows."""
    table, row = [], 0
    for example, length in enumerate(lengths):
        start = row
        while row - start < length or row % 8:
            table.append((example, row - start, row - start < length))
            row += 1
    end = row
    return table + [(len(lengths), row - end, False) for row in range(row, rows)]


@pytest.mark.parametrize("lengths", LAYOUTS)
@pytest.mark.parametrize("spare", [0, 16])
def test_rows_against_loops(lengths, spare):
    rows = max(8, sum(-(-n // 8) * 8 for n in lengths) + spare)
    events = random_jagged(lengths, 2, rows=rows)
    assert events.rows == rows
    expected = owners(lengths, rows)
    np.testing.assert_array_equal(events.example_ids(), [example for example, _, _ in expected])
    np.testing.assert_array_equal(events.positions(), [position for _, position, _ in expected])
    np.testing.assert_array_equal(events.mask(), [held for _, _, held in expected])


def test_rows_are_the_same_on_the_host():
    device = random_jagged(LAYOUTS[2], 2, rows=64)
    host = jax.tree.map(np.asarray, device)
    for name in ("example_ids", "positions", "mask"):
        np.testing.assert_array_equal(getattr(host, name)(), getattr(device, name)())


def test_replace_keeps_the_examples():
    events = random_jagged((3, 9), 2, rows=24)
    values = {"a": jnp.zeros((24, 1)), "b": jnp.zeros(24)}
    other = events.replace(values)
    assert other.values is values and other.rows == 24
    assert other.row_splits is events.row_splits and other.lengths is events.lengths


def test_tree_operations_keep_types_and_names():
    batch = random_batch()
    doubled = jax.tree.map(lambda x: x + x, batch)
    assert type(doubled) is Batch and type(doubled.events["view"]) is Jagged
    np.testing.assert_array_equal(doubled.events["view"].values["age"], 2 * batch.events["view"].values["age"])
    np.testing.assert_array_equal(doubled.row, 2 * batch.row)
    leaves, tree = jax.tree.flatten(batch)
    assert jax.tree.structure(jax.tree.unflatten(tree, leaves)) == tree
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(batch)}
    assert {".categorical", ".events['view'].values['ids']", ".multi_valued['tags'].row_splits"} <= paths
    assert len(paths) == 6 + 3 + 2 * 5


def test_tree_operations_may_hold_anything_for_a_moment():
    shapes = jax.tree.map(lambda x: x.shape, random_batch())
    assert shapes.events["view"].values["ids"] == (CAPACITY["view"], 2)
    assert jax.tree.map(lambda _: None, random_batch()).weights is None


def test_batch_passes_through_jit():
    batch = random_batch()
    again = jax.jit(lambda b: b)(batch)
    jax.tree.map(np.testing.assert_array_equal, again, batch)
    assert again.size == batch.size == BATCH
    assert again.request_time.dtype == np.uint32


def test_fields_cannot_be_set():
    with pytest.raises(dataclasses.FrozenInstanceError):
        random_batch().weights = None


def test_the_helper_makes_what_it_says():
    batch = random_batch()
    view = batch.events["view"]
    np.testing.assert_array_equal(view.lengths, [*VIEWS, 0])
    np.testing.assert_array_equal(batch.weights, [1] * len(VIEWS) + [0])
    age, mask = np.asarray(view.values["age"]), np.asarray(view.mask())
    start = int(view.row_splits[2])
    assert (np.diff(age[start : start + VIEWS[2]]) < 0).all() and (age[mask] > 0).all()
