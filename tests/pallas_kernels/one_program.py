"""One compiled program for all tests of an operator and an implementation: most of a test's time goes into compiling.

Offsets are arguments and every batch has the same number of examples and rows, so nothing but the dtype compiles again.
"""

import functools

import jax
import numpy as np
import pytest

from tests.pallas_kernels.contract import Contract, Traced
from tests.pallas_kernels.mosaic.accuracy import slow
from tests.pallas_kernels.operators import Layout, Operator


class Program:
    """(layout, operands, cotangent) -> output and gradients; offsets are arguments, so all layouts share it."""

    def __init__(self, operator: Operator, implementation: str):
        self.traced = []  # dtypes of the cotangents
        self._operator, self._implementation = operator, implementation
        self._jitted = jax.jit(self._trace)

    def __call__(self, layout: Layout, operands, cotangent):
        # By way of the host: what a jitted function made under the interpreter's mesh has another type than what came
        # from NumPy, and the program would be traced again.
        return self._jitted(*jax.tree.map(np.asarray, (operands, cotangent)), *layout.offsets)

    def _trace(self, operands, cotangent, splits, lengths):
        self.traced.append(cotangent.dtype)
        function = functools.partial(self._operator.call, self._implementation, Traced(splits, lengths))
        out, pullback = jax.vjp(lambda *operands: function(operands), *operands)
        return out, *pullback(cotangent)


@functools.cache
def program(operator: Operator, implementation: str, where: str = "") -> Program:
    """That of an operator; `where` is the chip for which a fixture sets up an interpreter."""
    del where
    return Program(operator, implementation)


class OneProgramContract(Contract):
    """The contract with batches of one size; a subclass has the fixture `run`, a `Program`.

    Attributes:
      examples, rows: of every batch. The rows end off the alignment, after the last of the examples in `lengths`.
    """

    examples: int
    rows: int

    def layout(self, lengths: tuple[int, ...], spare: int = 0, gaps: tuple[int, ...] = ()) -> Layout:
        """Examples of these lengths, with gaps after them, then empty ones."""
        del spare
        lengths += (0,) * (self.examples - len(lengths))
        gaps += (0,) * (self.examples - len(gaps))
        return Layout(lengths, self.rows - int(Layout(lengths, gaps=gaps).splits[-1]), gaps)

    def test_one_compilation_for_all_lengths(self, operator, run, rng):
        for lengths in ((20, 0, 31), (0, 8, 8)):
            layout = self.layout(lengths)
            operands = operator.operands(layout, rng, self.dtype)
            assert np.isfinite(run(layout, operands, operator.cotangent(layout, rng, self.dtype))[0]).all()
        assert run.traced.count(self.dtype) == 1


class MosaicContract(OneProgramContract):
    """The contract for the Mosaic kernels; a subclass has the fixture `operator`."""

    # Two tiles and their tails; as few rows as do, for an interpreted kernel takes seconds.
    lengths, changed = (0, 1, 70, 9, 0), 3
    examples, rows = 5, 99

    @pytest.fixture
    def run(self, operator, generation):
        return program(operator, "mosaic", generation)


def on_generations(*chosen: Operator) -> pytest.MarkDecorator:
    """Each operator on each generation of chips; interpreted, only one of the two is not slow.

    What differs between operators is known to both generations' kernels, and they take turns.
    """
    cases = []
    for number, operator in enumerate(chosen):
        for turn, generation in enumerate(("chip",) if jax.default_backend() == "gpu" else ("sm100", "sm90")):
            marks = () if number % 2 == turn else slow
            cases.append(pytest.param(generation, operator, id=f"{generation}-{operator.name}", marks=marks))
    return pytest.mark.parametrize(("generation", "operator"), cases, indirect=["generation"])
