"""The contract for the Mosaic kernels: on a CPU by interpretation with race detection, on a GPU that has them as is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pallas_kernels.activations import ACTIVATIONS
from pallas_kernels.gdpa import mosaic
from pallas_kernels.mosaic import target
from tests.pallas_kernels import operators
from tests.pallas_kernels.contract import Contract, Traced
from tests.pallas_kernels.operators import Layout, with_gradients

# Kept keys with a fill of zeros (5 is no multiple of 8), jagged keys of other lengths, and the queries' own rows.
OPERATORS = (
    operators.gdpa(dim=64),
    operators.gdpa(keys="jagged", dim=32),
    operators.gdpa(keys="self", dim=64),
)
ON_GPU = jax.default_backend() == "gpu"
# Interpreted kernels take seconds each: on a CPU the wider part of the tests waits for `make test-slow`.
slow = pytest.mark.usefixtures() if ON_GPU else pytest.mark.slow
GENERATIONS = ("chip",) if ON_GPU else ("sm90", "sm100")


@pytest.fixture(params=GENERATIONS)
def generation(request):
    return request.param


@pytest.fixture(autouse=True)
def chip(generation, capfd, request):
    """The kernels of a test run on the GPU, or interpreted for `generation`; a race that the interpreter sees fails.

    The interpreter compiles a kernel anew for each thread of each block, so there is one block where that will do.
    """
    if ON_GPU:
        yield
        return
    processors = 3 if request.node.get_closest_marker("several_blocks") else 1
    with target.interpret(generation, processors=processors, detect_races=True):
        yield
    printed = capfd.readouterr()
    assert "RACE DETECTED" not in printed.out + printed.err


@pytest.fixture
def implementation():
    return "mosaic"


def assert_error_of_16_bits(operator, layout, dtype=jnp.bfloat16, seed=20):
    """Within twice (output) and five times (gradients) the error of a plain program in `dtype`; padding is zero."""
    operands, cotangent, exact = operators.problem(operator, layout, dtype, seed)
    actual = with_gradients(lambda *a: operator.call("mosaic", *a), layout, operands, cotangent)
    plain = with_gradients(lambda *a: operator.reference(*a, upcast=False), layout, operands, cotangent)
    for x, y, z, factor, packed in zip(actual, plain, exact, (2, 5, 5, 5), operator.layouts(layout), strict=True):
        x, y = (np.asarray(array, np.float32) for array in (x, y))
        if packed:
            np.testing.assert_array_equal(x[~packed.mask], 0)
            x, y, z = (array[packed.mask] for array in (x, y, z))
        assert np.abs(x - z).max(initial=0) <= factor * np.abs(y - z).max(initial=0)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
class TestMosaicContract(Contract):
    # Two tiles and their tails; as few rows as do, for an interpreted kernel takes seconds.
    lengths, changed = (0, 1, 70, 9, 0), 3

    def test_one_compilation_for_all_lengths(self, operator, implementation, rng, generation):
        if generation == "sm100" and jax.__version_info__ >= (0, 12):
            # There the first tcgen05 kernel that a process interprets is traced again at its second call, whatever it
            # is called with; later kernels are not. So another one goes first.
            layout = Layout((3,))
            first = jax.jit(lambda operands, *offsets: operator.call(implementation, Traced(*offsets), operands))
            for _ in range(2):
                first(operator.operands(layout, rng, self.dtype), *layout.offsets)
        super().test_one_compilation_for_all_lengths(operator, implementation, rng)

    def test_capacity_off_the_alignment(self, operator):
        assert_error_of_16_bits(operator, Layout((5, 17), spare=3))


@slow
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    assert_error_of_16_bits(operators.gdpa(activation, dim=32, pre_scale=0.2), Layout((3, 0, 40)))


@slow
@pytest.mark.parametrize("dim", mosaic.DIMS)
@pytest.mark.parametrize("keys", ["dense", "self"])
def test_widths_of_a_head(dim, keys):
    # 136 keys: more than one tile, the last of them masked.
    assert_error_of_16_bits(
        operators.gdpa(dim=dim, keys=keys, dense_keys=136, pre_scale=dim**-0.5), Layout((150, 0, 9))
    )


@pytest.mark.several_blocks
def test_several_blocks_share_the_work():
    assert_error_of_16_bits(operators.gdpa(keys="self", dim=32, pre_scale=0.2), Layout((150, 3, 0, 64, 70)))


@slow
@given(
    lengths=st.lists(st.sampled_from([0, 1, 5, 8, 63, 64, 65, 128, 300]), min_size=1, max_size=5),
    keys=st.sampled_from(["dense", "jagged"]),
    seed=st.integers(0, 3),
)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lengths(lengths, keys, seed):
    """Empty ones, single rows, off the tile, one giant among tiny ones."""
    assert_error_of_16_bits(operators.gdpa(dim=32, keys=keys, pre_scale=0.2), Layout(tuple(lengths)), seed=seed)
