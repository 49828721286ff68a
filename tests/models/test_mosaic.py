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


DRAWS = 5
"""Of parameters: how far plain bfloat16 is off is as much chance as it is arithmetic."""


@functools.cache
def model(dtype: str, seed: int = 0):
    """Drawn at a scale at which bfloat16 computes gradients to some per cent.

    At the larger one of other tests, these wide maps multiply what they read by 3, and plain bfloat16 is off by up to
    1.8 times the largest entry of a gradient: a kernel that is wrong would not show.
    """
    return tiny_model(event=EVENT_BFLOAT16, dtype=dtype, seed=seed, scale=0.2)


def outputs(dtype: str, draws: int) -> list[list[np.ndarray]]:
    """Of each draw logits, then the gradients of a loss on them to the parameters of FFNs, pools and attention."""
    first, batch = model(dtype), random_batch()
    inputs = lookup(first.schema, batch, tiny_tables(dim=CONFIG.embedding_dim))
    graph = nnx.graphdef(first)

    @jax.jit
    def run(params):
        def loss(params):
            logits = nnx.merge(graph, params)(batch, inputs).astype(jnp.float32)
            return jnp.square(logits).sum(), logits

        gradients, logits = jax.grad(loss, has_aux=True)(params)
        return logits, gradients

    def kept(params) -> list[np.ndarray]:
        logits, gradients = run(params)
        leaves = jax.tree_util.tree_leaves_with_path(gradients)
        parts = ("ffn", "pool", "attention")
        of_parts = [x for path, x in leaves if any(part in jax.tree_util.keystr(path) for part in parts)]
        return [np.asarray(x, np.float32) for x in (logits, *of_parts)]

    return [kept(nnx.state(model(dtype, seed), nnx.Param)) for seed in range(draws)]


def errors(found: list[np.ndarray], exact: list[np.ndarray]) -> np.ndarray:
    """The largest error of each array over its largest entry."""
    return np.array([np.abs(x - z).max() / np.abs(z).max() for x, z in zip(found, exact, strict=True)])


@pytest.mark.slow
@pytest.mark.parametrize("generation", ["sm90", "sm100"])
def test_the_model_through_interpreted_kernels_matches_xla(generation, caplog):
    exact = outputs("float32", DRAWS)
    plain = np.stack([errors(x, z) for x, z in zip(outputs("bfloat16", DRAWS), exact, strict=True)])
    assert plain.max() < 0.25
    for log in (dispatch._log_choice, block._log_choice):
        log.cache_clear()
    caplog.set_level("INFO", logger="pallas_kernels")
    with target.interpret(generation, processors=1):
        fused = errors(outputs("bfloat16", 1)[0], exact[0])
    logged = " ".join(record.getMessage() for record in caplog.records)
    for choice in (
        "norms and residuals are fused",
        "window_attention: implementation 'mosaic'",
        "seed_attention: implementation 'mosaic'",
    ):
        assert choice in logged
    assert len(fused) > 12
    # The rule of the operators' contract: twice plain bfloat16's error forward, five times it backward. In one draw an
    # array of plain bfloat16 can be close by chance, so its largest error over draws counts; all gradients together are
    # held to twice its error in the same draw.
    assert fused[0] <= 2 * plain[:, 0].max()
    np.testing.assert_array_less(fused[1:], 5 * plain[:, 1:].max(0))
    assert np.square(fused[1:]).mean() <= 2**2 * np.square(plain[0, 1:]).mean()
