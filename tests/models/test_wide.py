"""The linear map from the context tokens to the logits that every system may have."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from kunlun_jax.nn.embedding import lookup
from tests.examples import random_batch, tiny_tables
from tests.models.systems import QUICK, TINY, tiny_system


# The map belongs to what all systems share; these two differ in what its sum is added to.
@pytest.mark.parametrize("name", ["dcnv2", "hstu"])
def test_it_adds_a_linear_map_of_the_context(name):
    model = tiny_system(name, wide=True)
    tables = tiny_tables(model.schema, dim=model.embedding_dim)
    kernel = np.asarray(model.wide.kernel[...])
    graph, state = nnx.split(model)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def forward(state, batch):
        model = nnx.merge(graph, state)
        embedded = lookup(model.schema, batch, tables)
        return model(batch, embedded), model.inputs(batch, embedded)[0]

    logits, context = forward(state, random_batch())
    model.wide.kernel = nnx.Param(np.zeros_like(kernel))
    without, _ = forward(nnx.state(model), random_batch())
    expected = np.asarray(context).reshape(len(context), -1) @ kernel
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits - without, expected, rtol=1e-4, atol=1e-5)
    (part,) = (part for part in model.parts(dict.fromkeys(model.event_names, np.array([3]))) if part.name == "wide")
    assert part.parameters == kernel.size and part.flops == 2 * kernel.size


def test_it_starts_at_nothing():
    schema = tiny_system("dlrm").schema
    config = type(TINY["dlrm"])(dim=8, embedding_dim=4, wide=True, dtype="float32")
    model = config.build(schema, base_rate=(0.2, 0.02), rngs=nnx.Rngs(0))
    assert not np.asarray(model.wide.kernel[...]).any()
