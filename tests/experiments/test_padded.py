"""The padded operators agree with the definition, gradients included, and leave the lists of implementations alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import padded
from pallas_kernels.operators.gdpa import api as gdpa_api
from tests.pallas_kernels import operators
from tests.pallas_kernels.contract import under_test
from tests.pallas_kernels.operators import LENGTHS, Layout, with_gradients

LONGEST = 104
"""Of 100 rows, the longest of `LENGTHS`, rounded up to a multiple of 8."""
OPERATORS = (
    operators.gdpa(),
    operators.gdpa("identity"),
    operators.gdpa("identity", dense_keys=LONGEST + 1),
    operators.window_attention(3, 9),
    operators.window_attention(10**6, 10**6),
    operators.window_attention(6, 2, groups=2),
    operators.seed_attention(),
    operators.seed_attention(own=True),
)


@pytest.fixture
def names():
    with padded.registered(LONGEST, "reference") as names:
        yield names


@pytest.mark.parametrize("operator", OPERATORS, ids=[f"{i}-{x.name}" for i, x in enumerate(OPERATORS)])
def test_float64_agrees_with_the_definition(operator, names):
    layout = Layout(LENGTHS)
    with jax.enable_x64(True):
        operands, cotangent, expected = operators.problem(operator, layout, jnp.float64)
        found = with_gradients(under_test(operator, names[0]), layout, operands, cotangent)
    for x, y, packed in zip(found, expected, operator.layouts(layout), strict=True):
        assert x.dtype == jnp.float64 and np.isfinite(y[packed.mask] if packed else y).all()
        if packed:
            np.testing.assert_array_equal(x[~packed.mask], 0)
            x, y = x[packed.mask], y[packed.mask]
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-12 * max(1.0, float(np.abs(y).max())))


@pytest.mark.parametrize("operator", [OPERATORS[0], OPERATORS[3], OPERATORS[6]], ids=lambda x: x.name)
def test_float32_agrees_with_the_reference_and_nothing_comes_of_empty_histories(operator, names):
    rng = np.random.default_rng(3)
    for layout in (Layout((9, 0, 41)), Layout((0, 0, 0), spare=16)):
        operands, cotangent = operator.operands(layout, rng, jnp.float32), operator.cotangent(layout, rng, jnp.float32)
        found, expected = (
            with_gradients(under_test(operator, name), layout, operands, cotangent) for name in (names[0], "reference")
        )
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=2e-5 * max(1.0, float(jnp.abs(y).max())))
    assert not np.any([np.any(x) for x in found])


def test_the_second_name_pads_in_gdpa_alone(names):
    def functions(name):
        return [{x.name: x.function for x in api.IMPLEMENTATIONS}[name] for api in padded.PADDED]

    both, second, reference = (functions(name) for name in (*names, "reference"))
    assert second == [both[0], *reference[1:]]


def test_outside_there_is_nothing_of_it():
    before = gdpa_api.IMPLEMENTATIONS
    with padded.registered(8, "xla"):
        assert gdpa_api.IMPLEMENTATIONS[: len(before)] == before
        assert [x.name for x in gdpa_api.IMPLEMENTATIONS[len(before) :]] == ["padded_8", "padded_gdpa_8"]
    assert before == gdpa_api.IMPLEMENTATIONS
    with pytest.raises(ValueError, match=r"fused is 'cuda'; .*gdpa\.api has \['mosaic', .*'reference'\]"):
        padded.registered(8, "cuda").__enter__()
    assert before == gdpa_api.IMPLEMENTATIONS
