"""The schedule and the optimizers against optax's and ours, away from any model."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from kunlun_jax.torch_reference.optimizer import RowWiseAdagrad, clip_by_global_norm, learning_rate
from kunlun_jax.training.optimizer import OptimizerConfig, dense_schedule, row_wise_adagrad


@pytest.mark.parametrize("decay", ["none", "linear", "cosine"])
@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 7), (0.1, 30), (0.05, 20), (1.0, 5)])
def test_schedule(decay, warmup, steps):
    config = OptimizerConfig(learning_rate=0.3, warmup=warmup, decay=decay)
    schedule = dense_schedule(config, steps)
    expected = [float(schedule(jnp.int32(step))) for step in range(steps + 3)]
    np.testing.assert_allclose([learning_rate(config, steps, step) for step in range(steps + 3)], expected, atol=1e-7)


def test_row_wise_adagrad():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(5, 3)).astype(np.float32)
    ours = jnp.asarray(table)
    theirs = torch.nn.Parameter(torch.from_numpy(table.copy()))
    transformation = row_wise_adagrad(0.1, 0.01, 1e-8)
    state = transformation.init(ours)
    adagrad = RowWiseAdagrad([theirs], lr=0.1, initial=0.01, epsilon=1e-8)
    for _ in range(4):
        gradient = rng.normal(size=(5, 3)).astype(np.float32)
        gradient[2] = 0
        updates, state = transformation.update(jnp.asarray(gradient), state)
        ours = ours + updates
        theirs.grad = torch.from_numpy(gradient)
        adagrad.step()
        np.testing.assert_allclose(theirs.detach(), ours, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(theirs.detach()[2], table[2])
    np.testing.assert_allclose(adagrad.state[theirs]["accumulator"], state.accumulator, rtol=1e-6)


@pytest.mark.parametrize("largest", [0.1, 1e3])
def test_clip(largest):
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=shape).astype(np.float32) for shape in ((3, 2), (4,))]
    params = [torch.nn.Parameter(torch.zeros(g.shape)) for g in gradients]
    for p, g in zip(params, gradients, strict=True):
        p.grad = torch.from_numpy(g.copy())
    clip_by_global_norm(params, largest)
    clip = optax.clip_by_global_norm(largest)
    expected, _ = clip.update([jnp.asarray(g) for g in gradients], clip.init(None))
    for p, e in zip(params, expected, strict=True):
        np.testing.assert_allclose(p.grad, e, rtol=1e-6)
