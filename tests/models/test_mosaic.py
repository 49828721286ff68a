"""The whole model through the interpreted Mosaic kernels of all operators, on a CPU."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kunlun_jax.nn.embedding import lookup
from pallas_kernels import dispatch
from pallas_kernels.mosaic import target
from pallas_kernels.operators.gdpa import block
from tests.examples import random_batch, tiny_tables
from tests.models.tiny import CONFIG, EVENT, tiny_model

# The narrowest head that the kernels take, in their dtype.
EVENT_BFLOAT16 = dataclasses.replace(EVENT, dim=64, heads=2, ffn_width=16)


@functools.cache
def model(dtype: str):
    return tiny_model(event=EVENT_BFLOAT16, dtype=dtype)


def outputs(dtype: str) -> list[np.ndarray]:
    """Logits, then the gradients of a loss on them to every parameter of FFNs, pooling and window attention."""
    kunlun, batch = model(dtype), random_batch()
    inputs = lookup(kunlun.schema, batch, tiny_tables(dim=CONFIG.embedding_dim))
    graph, params = nnx.split(kunlun, nnx.Param)

    @jax.jit
    def run(params):
        def loss(params):
            logits = nnx.merge(graph, params)(batch, inputs).astype(jnp.float32)
            return jnp.square(logits).sum(), logits

        gradients, logits = jax.grad(loss, has_aux=True)(params)
        return logits, gradients

    logits, gradients = run(params)
    leaves = jax.tree_util.tree_leaves_with_path(gradients)
    parts = ("ffn", "pool", "attention")
    kept = [x for path, x in leaves if any(part in jax.tree_util.keystr(path) for part in parts)]
    return [np.asarray(x, np.float32) for x in (logits, *kept)]


@pytest.mark.slow
@pytest.mark.parametrize("generation", ["sm90", "sm100"])
def test_the_model_through_interpreted_kernels_matches_xla(generation, caplog):
    exact, plain = outputs("float32"), outputs("bfloat16")
    for log in (dispatch._log_choice, block._log_choice):
        log.cache_clear()
    caplog.set_level("INFO", logger="pallas_kernels")
    with target.interpret(generation, processors=1):
        fused = outputs("bfloat16")
    logged = " ".join(record.getMessage() for record in caplog.records)
    for choice in (
        "norms and residuals are fused",
        "window_attention: implementation 'mosaic'",
        "seed_attention: implementation 'mosaic'",
    ):
        assert choice in logged
    assert len(fused) > 12
    for index, (x, y, z) in enumerate(zip(fused, plain, exact, strict=True)):
        scale = np.abs(z).max()
        # The rule of the operators' contract: twice plain bfloat16's error forward, five times it backward.
        factor = 2 if index == 0 else 5
        assert np.abs(x - z).max() <= factor * max(np.abs(y - z).max(), 2**-8 * scale)
