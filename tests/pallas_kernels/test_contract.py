"""The contract of the operators: one class, run for every operator with every implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pallas_kernels.activations import ACTIVATIONS
from tests.pallas_kernels import operators
from tests.pallas_kernels.operators import LENGTHS, Layout, with_gradients

IMPLEMENTATIONS = ("xla", "reference")
OPERATORS = (
    operators.gdpa(),
    operators.gdpa(keys="jagged"),
    operators.gdpa(keys="self"),
    operators.window_attention(3, 9),
    operators.seed_attention(),
)
WINDOWS = ((0, 0), (1, 0), (0, 2), (33, 40), (10**6, 10**6), (0, 10**6))


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield jnp.float64


@pytest.fixture
def rng():
    return np.random.default_rng(20)


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


@pytest.fixture(params=OPERATORS, ids=lambda operator: operator.name)
def operator(request):
    return request.param


def under_test(operator, implementation):
    return lambda layout, operands: operator.call(implementation, layout, operands)


def assert_agrees(operator, implementation, layout, dtype, tolerance):
    """Output and every gradient of poisoned operands, within `tolerance` of the largest value of the definition's."""
    operands, cotangent, expected = operators.problem(operator, layout, dtype)
    actual = with_gradients(under_test(operator, implementation), layout, operands, cotangent)
    for name, x, y, packed in zip("oqkv", actual, expected, operator.layouts(layout), strict=True):
        assert x.dtype == dtype
        if packed:
            np.testing.assert_array_equal(x[~packed.mask], 0, err_msg=f"padding of {name}")
            x, y = x[packed.mask], y[packed.mask]
        assert np.isfinite(y).all()
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1.0, float(np.abs(y).max(initial=0))))


class TestContract:
    def test_float64_agrees_with_the_definition(self, operator, implementation, float64):
        assert_agrees(operator, implementation, Layout(LENGTHS), float64, 1e-12)

    def test_float32_agrees_with_the_definition(self, operator, implementation):
        assert_agrees(operator, implementation, Layout(LENGTHS), jnp.float32, 2e-5)

    @pytest.mark.parametrize("window", WINDOWS, ids=str)
    def test_windows_are_inclusive(self, window, implementation, float64):
        layout = Layout((1, 9, 0, 41))
        assert_agrees(operators.window_attention(*window), implementation, layout, float64, 1e-12)

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_activations(self, activation, implementation, float64):
        assert_agrees(operators.gdpa(activation), implementation, Layout((3, 0, 40)), float64, 1e-12)

    @pytest.mark.parametrize("lengths", [(3,), (64, 64)], ids=str)
    def test_small_batches(self, operator, implementation, lengths, float64):
        assert_agrees(operator, implementation, Layout(lengths, spare=0), float64, 1e-12)

    def test_capacity_off_the_alignment(self, operator, implementation, float64):
        assert_agrees(operator, implementation, Layout((5, 17), spare=3), float64, 1e-12)

    def test_all_examples_empty(self, operator, implementation, rng, float64):
        layout = Layout((0, 0, 0), spare=16)
        operands = operator.operands(layout, rng, float64)
        cotangent = operator.cotangent(layout, rng, float64)
        results = with_gradients(under_test(operator, implementation), layout, operands, cotangent)
        for result in results:
            np.testing.assert_array_equal(result, 0)

    def test_bfloat16_error_is_that_of_bfloat16(self, operator, implementation):
        layout = Layout(LENGTHS)
        operands, cotangent, exact = operators.problem(operator, layout, jnp.bfloat16)
        actual = with_gradients(under_test(operator, implementation), layout, operands, cotangent)
        plain = with_gradients(lambda *a: operator.reference(*a, upcast=False), layout, operands, cotangent)
        factors = (2, 5, 5, 5)
        for x, y, z, factor, packed in zip(actual, plain, exact, factors, operator.layouts(layout), strict=True):
            assert x.dtype == jnp.bfloat16
            x, y, z = (np.asarray(array, np.float32)[packed.mask if packed else slice(None)] for array in (x, y, z))
            assert np.abs(x - z).max() <= factor * np.abs(y - z).max()

    def test_examples_do_not_see_each_other(self, operator, implementation, rng):
        layout, changed = Layout(LENGTHS), 5
        operands = operator.operands(layout, rng, jnp.float32)
        cotangent = operator.cotangent(layout, rng, jnp.float32)
        layouts = operator.layouts(layout)

        def rows_of(packed):
            return slice(packed.splits[changed], packed.splits[changed] + packed.lengths[changed])

        def perturb(x, packed):
            if packed:
                return x.at[rows_of(packed)].multiply(-3)
            return x.at[changed].multiply(-3) if x.shape[0] == len(layout.lengths) else x

        others = tuple(perturb(x, packed) for x, packed in zip(operands, layouts[1:], strict=True))
        function = jax.jit(
            lambda operands, cotangent: with_gradients(
                under_test(operator, implementation), layout, operands, cotangent
            )
        )
        before = function(operands, cotangent)
        after = function(others, perturb(cotangent, layouts[0]))
        compared = 0
        for x, y, packed in zip(before, after, layouts, strict=True):
            if packed:
                keep = packed.mask
                keep[rows_of(packed)] = False
                assert (x[rows_of(packed)] != y[rows_of(packed)]).any()
            elif x.shape[0] == len(layout.lengths):
                keep = np.arange(len(layout.lengths)) != changed
                assert (x[changed] != y[changed]).any()
            else:
                continue  # the gradient of shared seeds is a sum over all examples
            np.testing.assert_array_equal(x[keep], y[keep])
            compared += 1
        assert compared >= 3

    def test_one_compilation_for_all_lengths(self, operator, implementation, rng):
        traces = []
        rows, batch = 64, 3

        @jax.jit
        def function(operands, splits, lengths):
            traces.append(1)
            layout = _Traced(splits, lengths)
            return operator.call(implementation, layout, operands)

        for lengths in ((20, 0, 31), (0, 0, 0), (8, 8, 8)):
            layout = Layout(lengths)
            layout = Layout(lengths, spare=rows - int(layout.splits[-1]))
            assert layout.rows == rows and len(lengths) == batch
            operands = operator.operands(layout, rng, jnp.float32)
            assert np.isfinite(function(operands, *layout.offsets)).all()
        assert len(traces) == 1

    def test_large_scores_do_not_overflow(self, operator, implementation, rng):
        layout = Layout((40, 3))
        operands = tuple(x * 1e3 for x in operator.operands(layout, rng, jnp.float32))
        cotangent = operator.cotangent(layout, rng, jnp.float32)
        for result in with_gradients(under_test(operator, implementation), layout, operands, cotangent):
            assert np.isfinite(result).all()

    def test_under_shard_map_shared_operands_get_summed_gradients(self, operator, implementation, rng, float64):
        layouts = [Layout((5, 0, 33), spare=40), Layout((20, 41, 0), spare=16)]
        assert layouts[0].rows == layouts[1].rows
        operands = [operator.operands(layout, rng, float64) for layout in layouts]
        cotangents = [operator.cotangent(layout, rng, float64) for layout in layouts]
        shared = [operator.name == "seed", False, False]
        operands[1] = tuple(x if same else y for x, y, same in zip(operands[0], operands[1], shared, strict=True))
        single = [
            with_gradients(under_test(operator, implementation), *arguments)
            for arguments in zip(layouts, operands, cotangents, strict=True)
        ]

        mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
        in_specs = tuple(P() if same else P("data") for same in shared)

        def local(operands, splits, lengths, cotangent):
            function = lambda *operands: operator.call(implementation, _Traced(splits, lengths), operands)  # noqa: E731
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


class _Traced:
    """Offsets of a layout while they are traced."""

    def __init__(self, splits, lengths):
        self.offsets = (splits, lengths)

    @property
    def others(self):
        """As `Layout.others`."""
        lengths = jnp.roll(self.offsets[1], 1)
        ends = jnp.cumsum((lengths + 7) // 8 * 8, dtype=jnp.int32)
        return _Traced(jnp.pad(ends, (1, 0)), lengths)
