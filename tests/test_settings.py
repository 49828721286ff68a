"""That the settings of conftest.py and pyproject.toml are in force: without them other tests prove less."""

import warnings

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from kunlun_jax.training.metrics import log_losses
from kunlun_jax.training.optimizer import OptimizerConfig, dense_optimizer
from pallas_kernels.jagged import row_mask


def test_there_are_eight_cpu_devices():
    assert [device.platform for device in jax.devices()] == ["cpu"] * 8


def test_dtypes_are_not_promoted():
    with pytest.raises(jax.dtypes.TypePromotionError):
        jnp.ones(2, jnp.float32) + jnp.ones(2, jnp.int32)


def test_ranks_are_not_promoted():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 2)) + jnp.ones(2)


def test_warnings_are_errors():
    with pytest.raises(UserWarning, match="heard"):
        warnings.warn("heard", stacklevel=1)


def test_shapes_and_dtypes_are_checked_at_run_time():
    with pytest.raises(jaxtyping.TypeCheckError):
        log_losses(np.zeros(3), np.zeros(4))
    with pytest.raises(jaxtyping.TypeCheckError):
        row_mask(jnp.zeros(3, jnp.float32), jnp.zeros(2, jnp.int32), 8)


def test_optax_is_let_off_strict_promotion_and_our_code_is_not():
    params = jnp.ones(3)
    optimizer = dense_optimizer(OptimizerConfig(decay="cosine", weight_decay=0.1, clip_norm=1.0), 10)
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = jax.jit(optimizer.update)(params, state, params)
    assert (updates != 0).all()
    assert jax.config.jax_numpy_dtype_promotion == "strict"
