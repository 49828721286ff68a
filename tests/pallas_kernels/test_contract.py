"""The contract for the implementations of every platform, with what float64 and float32 make possible."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pallas_kernels.activations import ACTIVATIONS
from tests.pallas_kernels import operators
from tests.pallas_kernels.contract import Traced, under_test
from tests.pallas_kernels.one_program import OneProgramContract, program
from tests.pallas_kernels.operators import LENGTHS, Layout, with_gradients

IMPLEMENTATIONS = ("xla", "reference")
OPERATORS = (
    operators.gdpa(),
    operators.gdpa(keys="jagged"),
    operators.gdpa(keys="self"),
    operators.window_attention(3, 9),
    operators.window_attention(6, 2, groups=2),
    operators.seed_attention(),
    operators.seed_attention(own=True),
)
DIFFERENT = (OPERATORS[0], OPERATORS[3], OPERATORS[5])
"""One of each kind, where variants show the same."""
WINDOWS = ((0, 0), (1, 0), (0, 2), (33, 40), (10**6, 10**6), (0, 10**6))


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield jnp.float64


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


@pytest.fixture(params=OPERATORS, ids=lambda operator: operator.name)
def operator(request):
    return request.param


def assert_agrees(operator, implementation, layout, dtype, tolerance, run=None):
    """Output and every gradient of poisoned operands, within `tolerance` of the largest value of the definition's.

    `run` is a program that is there already.
    """
    operands, cotangent, expected = operators.problem(operator, layout, dtype)
    run = run or functools.partial(with_gradients, under_test(operator, implementation))
    actual = run(layout, operands, cotangent)
    for name, x, y, packed in zip("oqkv", actual, expected, operator.layouts(layout), strict=True):
        assert x.dtype == dtype
        if packed:
            np.testing.assert_array_equal(x[~packed.mask], 0, err_msg=f"padding of {name}")
            x, y = x[packed.mask], y[packed.mask]
        assert np.isfinite(y).all()
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1.0, float(np.abs(y).max(initial=0))))


class TestContract(OneProgramContract):
    dtype = jnp.float32
    examples, rows = len(LENGTHS), Layout(LENGTHS).rows + 3

    @pytest.fixture
    def run(self, operator, implementation):
        return program(operator, implementation)

    def test_float64_agrees_with_the_definition(self, operator, implementation, run, float64):
        assert_agrees(operator, implementation, self.layout(LENGTHS), float64, 1e-12, run)

    def test_float32_agrees_with_the_definition(self, operator, implementation, run):
        assert_agrees(operator, implementation, self.layout(LENGTHS), jnp.float32, 2e-5, run)

    @pytest.mark.parametrize("window", WINDOWS, ids=str)
    def test_windows_are_inclusive(self, window, implementation, float64):
        layout = Layout((1, 9, 0, 41))
        assert_agrees(operators.window_attention(*window), implementation, layout, float64, 1e-12)

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_activations(self, activation, implementation, float64):
        assert_agrees(operators.gdpa(activation), implementation, Layout((3, 0, 40)), float64, 1e-12)

    @pytest.mark.parametrize("implementation", ["xla"], indirect=True)
    def test_one_example_without_a_spare_row(self, operator, implementation, float64):
        assert_agrees(operator, implementation, Layout((3,), spare=0), float64, 1e-12)

    @pytest.mark.parametrize("operator", DIFFERENT, indirect=True, ids=lambda x: x.name)
    @pytest.mark.parametrize("implementation", ["xla"], indirect=True)
    def test_under_shard_map_shared_operands_get_summed_gradients(self, operator, implementation, rng, float64):
        layouts = [Layout((5, 0, 33), spare=40), Layout((20, 41, 0), spare=16)]
        assert layouts[0].rows == layouts[1].rows
        operands = [operator.operands(layout, rng, float64) for layout in layouts]
        cotangents = [operator.cotangent(layout, rng, float64) for layout in layouts]
        shared = [operator.shared_queries, False, False]
        operands[1] = tuple(x if same else y for x, y, same in zip(operands[0], operands[1], shared, strict=True))
        single = [
            with_gradients(under_test(operator, implementation), *arguments)
            for arguments in zip(layouts, operands, cotangents, strict=True)
        ]

        mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
        in_specs = tuple(P() if same else P("data") for same in shared)

        def local(operands, splits, lengths, cotangent):
            function = lambda *operands: operator.call(implementation, Traced(splits, lengths), operands)  # noqa: E731
            out, pullback = jax.vjp(function, *operands)
            return out, pullback(cotangent)

        joined = tuple(x if same else jnp.concatenate([x, y]) for x, y, same in zip(*operands, shared, strict=True))
        splits, lengths = (jnp.concatenate(arrays) for arrays in zip(*(x.offsets for x in layouts), strict=True))
        out, gradients = jax.jit(
            jax.shard_map(
                local,
                mesh=mesh,
                in_specs=(in_specs, P("data"), P("data"), P("data")),
                out_specs=(P("data"), in_specs),
            )
        )(joined, splits, lengths, jnp.concatenate(cotangents))
        np.testing.assert_allclose(out, np.concatenate([x[0] for x in single]), rtol=0, atol=1e-12)
        for actual, x, y, same in zip(gradients, single[0][1:], single[1][1:], shared, strict=True):
            np.testing.assert_allclose(actual, x + y if same else np.concatenate([x, y]), rtol=0, atol=1e-12)
