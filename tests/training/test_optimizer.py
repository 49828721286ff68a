"""The optimizers against plain NumPy, and rows of a table against the whole table."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kunlun_jax.nn.embedding import Touched
from kunlun_jax.training.optimizer import (
    OptimizerConfig,
    dense_optimizer,
    dense_schedule,
    row_wise_adagrad,
    table_optimizer,
    update_rows,
)

ROWS, DIM = 11, 3


def adagrad_loop(table, gradients, rate, initial, epsilon):
    """Row-wise Adagrad in float64, a row at a time."""
    table = table.astype(np.float64)
    accumulator = np.full(len(table), initial)
    for gradient in gradients:
        for row, g in enumerate(gradient.astype(np.float64)):
            accumulator[row] += sum(value * value for value in g) / len(g)
            table[row] -= rate * g / (np.sqrt(accumulator[row]) + epsilon)
    return table, accumulator


@pytest.mark.parametrize("initial", [0.0, 0.1])
def test_row_wise_adagrad_against_numpy(initial):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(ROWS, DIM)).astype(np.float32)
    gradients = rng.normal(size=(4, ROWS, DIM)).astype(np.float32)
    gradients[:, 5] = 0.0
    optimizer = row_wise_adagrad(0.3, initial, 1e-8)
    params, state = jnp.asarray(table), optimizer.init(jnp.asarray(table))
    for gradient in gradients:
        updates, state = optimizer.update(jnp.asarray(gradient), state)
        params = optax.apply_updates(params, updates)
    expected, accumulator = adagrad_loop(table, gradients, 0.3, initial, 1e-8)
    np.testing.assert_allclose(params, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.accumulator, accumulator, rtol=1e-6)
    assert state.accumulator.shape == (ROWS,)
    np.testing.assert_array_equal(params[5], table[5])


def test_first_step_moves_every_row_by_the_rate_whatever_its_gradient():
    gradient = jnp.asarray([[1e-3, 1e-3], [-40.0, 40.0]])
    optimizer = row_wise_adagrad(0.25)
    updates, _ = optimizer.update(gradient, optimizer.init(gradient))
    np.testing.assert_allclose(updates, [[-0.25, -0.25], [0.25, -0.25]], rtol=1e-4)


def touched_by(ids: np.ndarray) -> Touched:
    rows, slots = jnp.unique(jnp.asarray(ids), size=len(ids), fill_value=ROWS, return_inverse=True)
    return Touched(rows, {"ids": slots.astype(jnp.int32)})


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param([3, 7, 3, 3, 0], id="repeated"),
        pytest.param([1, 2, 3, 4, 5], id="without_fill"),
        pytest.param([10, 10, 10, 10, 2], id="last_row_touched"),
        pytest.param([4, 4, 4, 4, 4], id="one_row"),
    ],
)
def test_update_rows_is_the_optimizer_on_the_whole_table(ids):
    """Loss sum(c * table[ids]): its gradient sums over repeated ids before anything is squared."""
    ids = np.asarray(ids, np.int32)
    rng = np.random.default_rng(1)
    table = jnp.asarray(rng.normal(size=(ROWS, DIM)), jnp.float32)
    coefficients = jnp.asarray(rng.normal(size=(len(ids), DIM)), jnp.float32)
    optimizer = table_optimizer(OptimizerConfig(table_learning_rate=0.2, table_initial=0.05))
    old_state = optimizer.init(table)
    # An accumulator that differs from row to row, so that a mixed-up row would show.
    old_state = old_state._replace(accumulator=old_state.accumulator + jnp.linspace(0.0, 2.0, ROWS))

    dense_gradient = jax.grad(lambda t: (t[ids] * coefficients).sum())(table)
    updates, dense_state = optimizer.update(dense_gradient, old_state)
    dense = table + updates

    touched = touched_by(ids)
    old = table.at[touched.rows].get(mode="clip")
    row_gradient = jax.grad(lambda r: (r[touched.slots["ids"]] * coefficients).sum())(old)
    new, state = jax.jit(lambda *a: update_rows(optimizer, *a))(table, old_state, touched, old, row_gradient)

    np.testing.assert_allclose(new, dense, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(state.accumulator, dense_state.accumulator, rtol=1e-6)
    others = np.setdiff1d(np.arange(ROWS), ids)
    np.testing.assert_array_equal(new[others], table[others])
    np.testing.assert_array_equal(state.accumulator[others], old_state.accumulator[others])
    assert np.all(np.any(np.asarray(new)[ids] != np.asarray(table)[ids], axis=1))


def test_fill_rows_write_nothing_whatever_their_gradient():
    table = jnp.arange(ROWS * DIM, dtype=jnp.float32).reshape(ROWS, DIM)
    optimizer = row_wise_adagrad(0.5)
    touched = touched_by(np.asarray([2, 2, 2, 2], np.int32))
    assert touched.rows.tolist() == [2, ROWS, ROWS, ROWS]
    gradient = jnp.ones((4, DIM)).at[1:].set(jnp.nan)
    old = table.at[touched.rows].get(mode="clip")
    new, state = update_rows(optimizer, table, optimizer.init(table), touched, old, gradient)
    others = np.setdiff1d(np.arange(ROWS), [2])
    np.testing.assert_array_equal(new[others], table[others])
    np.testing.assert_array_equal(state.accumulator, np.eye(ROWS)[2])
    np.testing.assert_allclose(new[2], table[2] - 0.5)


def rates(config: OptimizerConfig, steps: int) -> np.ndarray:
    return np.asarray([dense_schedule(config, steps)(step) for step in range(steps)], np.float64)


def test_schedule_warms_up_to_the_peak_and_stays():
    values = rates(OptimizerConfig(learning_rate=0.8, warmup=0.4), 10)
    np.testing.assert_allclose(values, [0.2, 0.4, 0.6, 0.8] + [0.8] * 6, rtol=1e-6)


def test_schedule_falls_linearly_to_nothing():
    values = rates(OptimizerConfig(learning_rate=0.8, warmup=0.2, decay="linear"), 10)
    np.testing.assert_allclose(values, [0.4, 0.8] + [0.8 * (1 - k / 8) for k in range(8)], rtol=1e-6)


def test_schedule_falls_as_a_cosine_to_nothing():
    values = rates(OptimizerConfig(learning_rate=0.8, warmup=0.2, decay="cosine"), 10)
    np.testing.assert_allclose(
        values, [0.4, 0.8] + [0.4 * (1 + np.cos(np.pi * k / 8)) for k in range(8)], rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("steps", [1, 3])
def test_schedule_without_warm_up_starts_at_the_peak(steps):
    np.testing.assert_allclose(rates(OptimizerConfig(learning_rate=0.8, warmup=0.0), steps), 0.8, rtol=1e-6)


def test_dense_optimizer_is_adam_with_that_schedule():
    config = OptimizerConfig(learning_rate=0.1, warmup=0.5, weight_decay=0.01, b1=0.8, b2=0.9)
    rng = np.random.default_rng(2)
    start, gradients = rng.normal(size=4), rng.normal(size=(6, 4))
    optimizer = dense_optimizer(config, 6)
    params = jnp.asarray(start, jnp.float32)
    state = optimizer.init(params)
    expected, m, v = start.copy(), np.zeros(4), np.zeros(4)
    for number, gradient in enumerate(gradients, 1):
        updates, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        rate = 0.1 * min(number / 3, 1)
        direction = m / (1 - 0.8**number) / (np.sqrt(v / (1 - 0.9**number)) + 1e-8)
        expected -= rate * (direction + 0.01 * expected)
    np.testing.assert_allclose(params, expected, rtol=1e-4, atol=1e-5)


def test_clip_norm_bounds_the_dense_gradient():
    config = OptimizerConfig(learning_rate=1.0, warmup=0.0, clip_norm=1e-3, b1=0.0, b2=0.0)
    plain = dense_optimizer(OptimizerConfig(learning_rate=1.0, warmup=0.0), 1)
    params = jnp.ones(2)
    gradient = jnp.asarray([3.0, 4.0])
    clipped = dense_optimizer(config, 1)
    _, state = clipped.update(gradient, clipped.init(params), params)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2,)]
    assert max(float(jnp.linalg.norm(moment)) for moment in moments) == pytest.approx(1e-3, rel=1e-4)
    _, state = plain.update(gradient, plain.init(params), params)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2,)]
    assert max(float(jnp.linalg.norm(moment)) for moment in moments) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("warmup", [-0.1, 1.5])
def test_a_warm_up_that_is_no_part_is_refused(warmup):
    with pytest.raises(ValueError, match=rf"optimizer.warmup is {warmup}"):
        OptimizerConfig(warmup=warmup)
