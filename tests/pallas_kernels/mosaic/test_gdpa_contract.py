"""The contract for the Mosaic kernels of gdpa: on a CPU by interpretation with race detection, on a GPU as is."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pallas_kernels.activations import ACTIVATIONS
from pallas_kernels.mosaic import launch
from tests.pallas_kernels import operators
from tests.pallas_kernels.mosaic.accuracy import assert_error_of_16_bits, slow
from tests.pallas_kernels.one_program import MosaicContract, on_generations
from tests.pallas_kernels.operators import Layout

# Kept keys with a fill of zeros (5 is no multiple of 8), and jagged keys of other lengths. The queries' own rows as
# keys run on the same kernel as those, and `test_several_blocks_share_the_work` has them.
OPERATORS = (operators.gdpa(dim=64), operators.gdpa(keys="jagged", dim=32))
pytestmark = pytest.mark.usefixtures("chip")


@on_generations(*OPERATORS)
class TestMosaicContract(MosaicContract):
    """Bases hold the tests."""


@slow
@pytest.mark.parametrize("operator", [operators.gdpa(keys="self", dim=64)], ids=lambda operator: operator.name)
class TestMosaicContractOfOwnRows(MosaicContract):
    """Bases hold the tests."""


@slow
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    assert_error_of_16_bits(operators.gdpa(activation, dim=32, pre_scale=0.2), Layout((3, 0, 40)))


@slow
@pytest.mark.parametrize("dim", launch.DIMS)
@pytest.mark.parametrize("keys", ["dense", "self"])
def test_widths_of_a_head(dim, keys):
    # 136 keys: more than one tile, the last of them masked.
    assert_error_of_16_bits(
        operators.gdpa(dim=dim, keys=keys, dense_keys=136, pre_scale=dim**-0.5), Layout((150, 0, 9))
    )


@pytest.mark.several_blocks
def test_several_blocks_share_the_work():
    assert_error_of_16_bits(operators.gdpa(keys="self", dim=32, pre_scale=0.2), Layout((150, 3, 0, 64, 70)))


@pytest.mark.gaps_zeroed
@slow
@pytest.mark.parametrize("keys", ["dense", "jagged"])
def test_gaps_of_short_examples_are_zeroed(keys):
    layout = Layout((0, 3, 20, 0), gaps=(16, 8, 16, 0), spare=40)
    assert_error_of_16_bits(operators.gdpa(keys=keys, dim=32, pre_scale=0.2), layout)


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
