"""Event tokens: MaskNet and MLP against NumPy, and the age as an input."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kunlun_jax.nn.event_input import EventInput, log_age
from kunlun_jax.nn.mlp import MLP
from tests.examples import build

FIELDS, DENSE, EMBEDDING, DIM, ROWS = 2, 1, 3, 4, 6


def make(kind: str, age: bool = True) -> EventInput:
    options = {"kind": kind, "age": age, "activation": "relu", "dtype": jnp.float32}
    return build(lambda: EventInput(FIELDS, DENSE, EMBEDDING, DIM, rngs=nnx.Rngs(0), **options))


def inputs():
    rng = np.random.default_rng(0)
    shapes = ((ROWS, FIELDS, EMBEDDING), (ROWS, DENSE))
    fields, dense = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return fields, dense, rng.uniform(0, 1e6, ROWS).astype(np.float32)


def mlp_by_hand(mlp: MLP, x: np.ndarray) -> np.ndarray:
    first, second = ([np.asarray(p[...]) for p in (m.kernel, m.bias)] for m in mlp.layers)
    return np.maximum(x @ first[0] + first[1], 0) @ second[0] + second[1]


@pytest.mark.parametrize("kind", ["masknet", "mlp"])
@pytest.mark.parametrize("age", [True, False])
def test_tokens_against_numpy(kind, age):
    module = make(kind, age)
    fields, dense, ages = inputs()
    x = np.concatenate([fields.reshape(ROWS, -1), dense], axis=1)
    if age:
        x = np.concatenate([x, [[math.log(1 + a / 3600)] for a in ages.tolist()]], axis=1)
    expected = mlp_by_hand(module.mlp, x * mlp_by_hand(module.mask, x) if kind == "masknet" else x)
    y = jax.jit(module)(*(jnp.asarray(part) for part in (fields, dense, ages)))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)
    width = FIELDS * EMBEDDING + DENSE + age
    mask = 2 * (width * DIM + DIM * width) if kind == "masknet" else 0
    assert module.flops() == mask + 2 * (width * DIM + DIM * DIM)


def test_log_age():
    np.testing.assert_allclose(log_age(jnp.array([0.0, 3600.0, 365 * 86400.0])), [0, math.log(2), 9.078], atol=1e-3)


def test_unknown_kind():
    with pytest.raises(ValueError, match="event_input is 'linear'; use 'masknet' or 'mlp'"):
        make("linear")
