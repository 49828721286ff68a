"""What every implementation of every operator must do, as one class; the test modules say which they are.

A subclass sets `dtype` and has the fixtures `operator` and `implementation`; one whose programs take long to compile
replaces `layout` and `run` and needs no `implementation`, so that its tests share one program.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pallas_kernels import operators
from tests.pallas_kernels.mosaic.accuracy import slow
from tests.pallas_kernels.operators import LENGTHS, Layout, compiled


def under_test(operator, implementation):
    return lambda layout, operands: operator.call(implementation, layout, operands)


class Contract:
    """The tests that every implementation passes.

    Attributes:
      dtype: of the operands, where the test is not about one.
      lengths: of the examples.
      changed: an example that is not empty, nor is the one before it.
    """

    dtype = jnp.bfloat16
    lengths, changed = LENGTHS, 5

    @pytest.fixture
    def rng(self):
        return np.random.default_rng(20)

    @pytest.fixture
    def run(self, operator, implementation):
        """(layout, operands, cotangent) -> output and gradients, compiled once for each layout."""
        program = functools.cache(functools.partial(compiled, under_test(operator, implementation)))
        return lambda layout, operands, cotangent: program(layout)(operands, cotangent)

    def layout(self, lengths: tuple[int, ...], spare: int = 24, gaps: tuple[int, ...] = ()) -> Layout:
        """Examples of these lengths, with gaps after them."""
        return Layout(lengths, spare, gaps)

    @pytest.mark.parametrize(
        "dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=slow)], ids=["bfloat16", "float16"]
    )
    def test_16_bit_error_is_that_of_16_bits(self, operator, run, dtype):
        self.check_error(operator, run, self.layout(self.lengths), dtype)

    def test_gaps_may_be_of_any_length(self, operator, run):
        """In front of all rows, longer than a tile is, and after all rows; what is in them is NaN."""
        self.check_error(operator, run, self.layout((0, 3, 20, 0), gaps=(16, 8, 16, 0), spare=40), jnp.bfloat16)

    def check_error(self, operator, run, layout, dtype):
        """Errors of output and gradients are at most twice and five times those of 16 bits, and gaps are zeros."""
        operands, cotangent, exact = operators.problem(operator, layout, dtype)
        actual = run(layout, operands, cotangent)
        plain = operators.plain(operator, layout, dtype)
        factors = (2, 5, 5, 5)
        for x, y, z, factor, packed in zip(actual, plain, exact, factors, operator.layouts(layout), strict=True):
            assert x.dtype == dtype
            x, y, z = (np.asarray(array, np.float32) for array in (x, y, z))
            if packed:
                np.testing.assert_array_equal(x[~packed.mask], 0)
                x, y, z = (array[packed.mask] for array in (x, y, z))
            assert np.abs(x - z).max() <= factor * np.abs(y - z).max()

    def test_all_examples_empty(self, operator, run, rng):
        layout = self.layout((0, 0, 0), spare=16)
        operands = operator.operands(layout, rng, self.dtype)
        for result in run(layout, operands, operator.cotangent(layout, rng, self.dtype)):
            np.testing.assert_array_equal(result, 0)

    def test_examples_do_not_see_each_other(self, operator, run, rng):
        layout, changed = self.layout(self.lengths), self.changed
        operands = operator.operands(layout, rng, self.dtype)
        cotangent = operator.cotangent(layout, rng, self.dtype)
        layouts = operator.layouts(layout)

        def rows_of(packed):
            return slice(packed.splits[changed], packed.splits[changed] + packed.lengths[changed])

        def perturb(x, packed):
            if packed:
                return x.at[rows_of(packed)].multiply(-3)
            return x.at[changed].multiply(-3) if x.shape[0] == len(layout.lengths) else x

        others = tuple(perturb(x, packed) for x, packed in zip(operands, layouts[1:], strict=True))
        before = run(layout, operands, cotangent)
        after = run(layout, others, perturb(cotangent, layouts[0]))
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
            layout = Traced(splits, lengths)
            return operator.call(implementation, layout, operands)

        for lengths in ((20, 0, 31), (0, 0, 0), (8, 8, 8)):
            layout = Layout(lengths)
            layout = Layout(lengths, spare=rows - int(layout.splits[-1]))
            assert layout.rows == rows and len(lengths) == batch
            operands = operator.operands(layout, rng, self.dtype)
            assert np.isfinite(function(operands, *layout.offsets)).all()
        assert len(traces) == 1

    def test_large_scores_do_not_overflow(self, operator, run, rng):
        layout = self.layout((40, 3))
        operands = tuple(x * 1e3 for x in operator.operands(layout, rng, self.dtype))
        for result in run(layout, operands, operator.cotangent(layout, rng, self.dtype)):
            assert np.isfinite(result).all()


class Traced:
    """Offsets of a layout while they are traced."""

    def __init__(self, splits, lengths):
        self.offsets = (splits, lengths)

    @property
    def others(self):
        """As `Layout.others`."""
        splits, lengths = self.offsets
        ends = jnp.cumsum(jnp.roll(splits[1:] - splits[:-1], 1), dtype=jnp.int32)
        return Traced(jnp.pad(ends, (1, 0)), jnp.roll(lengths, 1))
