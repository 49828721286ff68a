"""Rows of a table in parts against the same table whole, for ids that are spread and for ids that are not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kunlun_jax.nn.embedding import Touched
from kunlun_jax.parallel import DATA, MeshConfig, make_mesh
from kunlun_jax.training import exchange
from kunlun_jax.training.optimizer import row_wise_adagrad, update_rows

ROWS, DIM, IDS = 4096, 3, 512
each_mesh = pytest.mark.parametrize("devices", [2, 4, 8])


def over(devices: int, function, out):
    mesh = make_mesh(MeshConfig(devices))
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=P(DATA), out_specs=out, check_vma=False))


def ids_of(kind: str, devices: int, rng) -> np.ndarray:
    """``[devices, IDS]`` ascending and unique ids of each device, filled up with `ROWS`."""
    each = []
    for device in range(devices):
        count = {"none": 0, "few": 5}.get(kind, IDS - 40 * device)
        within = {"one owner": ROWS // devices, "a run": count + 7}.get(kind, ROWS)
        found = np.sort(rng.choice(within, min(count, within), replace=False))
        each.append(np.pad(found, (0, IDS - len(found)), constant_values=ROWS))
    return np.stack(each).astype(np.int32)


@each_mesh
@pytest.mark.parametrize("kind", ["spread", "one owner", "a run", "few", "none"])
def test_a_table_in_parts_is_read_and_updated_like_a_whole_one(kind, devices):
    rng = np.random.default_rng(devices)
    table = rng.standard_normal((ROWS, DIM)).astype(np.float32)
    ids = ids_of(kind, devices, rng)
    gradient = rng.standard_normal((devices, IDS, DIM)).astype(np.float32)
    gradient[ids == ROWS] = np.nan  # rows that only fill up reach no optimizer
    optimizer = row_wise_adagrad(0.1)
    state = optimizer.init(jnp.asarray(table))
    state = jax.tree.map(lambda x: x + jnp.arange(ROWS, dtype=jnp.float32) / ROWS, state)

    def in_parts(table, state, ids, gradient):
        way = exchange.route(ids, table.shape[0], DATA)
        rows = exchange.fetch(table, way, DATA)
        new, new_state = exchange.update(optimizer, table, state, way, gradient, DATA)
        return rows, new, new_state, way.rounds[None]

    rows, new, new_state, rounds = over(devices, in_parts, P(DATA))(
        table, state, ids.reshape(-1), gradient.reshape(-1, DIM)
    )
    filled = np.concatenate([table, np.zeros((1, DIM), np.float32)])
    np.testing.assert_array_equal(rows, filled[ids.reshape(-1)])

    total = np.zeros((ROWS, DIM))
    for own, of in zip(ids, gradient, strict=True):
        total[own[own < ROWS]] += of[own < ROWS]
    read = np.unique(ids[ids < ROWS]).astype(np.int32)
    touched = Touched(jnp.append(jnp.asarray(read), ROWS), {})
    old = jnp.asarray(filled[np.append(read, ROWS)])
    summed = jnp.asarray(np.concatenate([total[read], np.zeros((1, DIM))]), jnp.float32)
    expected, expected_state = update_rows(optimizer, jnp.asarray(table), state, touched, old, summed)
    np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(new_state.accumulator, expected_state.accumulator, rtol=1e-5)
    others = np.setdiff1d(np.arange(ROWS), read)
    np.testing.assert_array_equal(np.asarray(new)[others], table[others])

    # Spread ids take one round; where one device has all of them, a round has room for a share of them.
    (number,) = set(np.asarray(rounds).tolist())
    assert number == 1 if kind in ("spread", "few", "none") else 1 < number <= 4 * devices


def test_what_travels_is_a_little_more_than_what_is_read():
    """No array of the program is as large as the table, and boxes have room for an even share and a quarter."""
    devices, rows, count = 8, 1 << 20, 4096

    def read(table, ids):
        return exchange.fetch(table, exchange.route(ids, table.shape[0], DATA), DATA)

    shapes = jax.ShapeDtypeStruct((rows, DIM), jnp.float32), jax.ShapeDtypeStruct((devices * count,), jnp.int32)
    text = over(devices, read, P(DATA)).trace(*shapes).lower().as_text()
    sent = [line for line in text.splitlines() if "all_to_all" in line and "xf32" in line]
    room = round(count / devices * exchange.SLACK)
    assert len(sent) == 1 and f"tensor<{devices * room}x{DIM}xf32>" in sent[0]
    assert "all_gather" not in text and "all_reduce" in text  # the last says whether ids fit


@functools.cache
def mixed(values: tuple[int, ...]) -> np.ndarray:
    return np.asarray(exchange._mixed(jnp.asarray(values, jnp.int32)))


def test_rounds_are_spread_and_every_row_could_have_its_own():
    found = mixed(tuple(range(1 << 16)))
    assert len(np.unique(found)) == 1 << 16
    assert np.bincount(found & 7).std() < 0.02 * (1 << 13)
