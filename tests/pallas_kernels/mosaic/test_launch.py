"""Calls that are alike share a kernel, forward and backward; those for another chip or shape do not."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core.primitives import jit_p

from pallas_kernels import gdpa, gdpa_block, seed_attention, window_attention
from pallas_kernels.mosaic import target

HEADS, DIM, KEYS = 2, 32, 16
SCALES = {"activation": "gelu_tanh", "pre_scale": 0.1, "post_scale": 1.0, "implementation": "mosaic"}
LAYERS = {
    "gdpa": lambda x, keys, seeds, *offsets: gdpa(x, keys, keys, *offsets, **SCALES),
    "gdpa_block": lambda x, keys, seeds, *offsets: gdpa_block(x, keys, keys, *offsets, **SCALES),
    "window_attention": lambda x, keys, seeds, *offsets: window_attention(
        x, x, x, *offsets, window=(8, 8), scale=1.0, implementation="mosaic"
    ),
    "seed_attention": lambda x, keys, seeds, *offsets: (
        x * seed_attention(seeds, x, x, *offsets, scale=1.0, implementation="mosaic").sum()
    ),
}


def passes(operator: str, layers: int, rows: int = 64) -> list[Any]:
    """Which program each pass of each layer is, forward and backward; jax lowers one once, however often called."""

    def loss(x, keys, seeds, row_splits, lengths):
        for _ in range(layers):
            x = LAYERS[operator](x, keys, seeds, row_splits, lengths)
        return x.astype(jnp.float32).sum()

    shapes = [jax.ShapeDtypeStruct((*leading, HEADS, DIM), jnp.bfloat16) for leading in ((rows,), (3, KEYS), (KEYS,))]
    shapes += [jax.ShapeDtypeStruct((number,), jnp.int32) for number in (4, 3)]
    equations = jax.make_jaxpr(jax.grad(loss))(*shapes).eqns
    calls = [equation.params for equation in equations if equation.primitive is jit_p]
    return [call["jaxpr"] for call in calls if call["name"].strip("_") in ("forward", "backward")]


def different(programs: list[Any]) -> int:
    return len({id(program) for program in programs})


@pytest.mark.parametrize("operator", LAYERS)
def test_layers_that_are_alike_share_their_kernels(operator):
    with target.build_for(target.Target("sm90", 132)):
        assert len(passes(operator, 1)) == 2
        three = passes(operator, 3)
    assert len(three) == 6
    assert different(three) == 2


def test_other_shapes_and_chips_have_their_own():
    found = []
    for generation in ("sm90", "sm100"):
        with target.build_for(target.Target(generation, 132)):
            found += passes("window_attention", 1) + passes("window_attention", 1, rows=128)
    assert different(found) == len(found) == 8
