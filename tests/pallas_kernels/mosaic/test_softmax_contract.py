"""The contract for the Mosaic kernels of window and seed attention; see test_gdpa_contract."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pallas_kernels.mosaic import launch
from pallas_kernels.mosaic.config import CONFIGS
from pallas_kernels.operators.seed_attention import mosaic as seed_mosaic
from tests.pallas_kernels import operators
from tests.pallas_kernels.mosaic.accuracy import assert_error_of_16_bits, slow
from tests.pallas_kernels.one_program import MosaicContract, on_generations
from tests.pallas_kernels.operators import Layout

pytestmark = pytest.mark.usefixtures("chip")

OPERATORS = (operators.window_attention(3, 9, dim=64), operators.seed_attention(dim=32))
WINDOWS = ((0, 0), (1, 0), (0, 2), (33, 40), (63, 64), (64, 65), (10**6, 10**6), (0, 10**6))


@on_generations(*OPERATORS)
class TestSoftmaxContract(MosaicContract):
    """Bases hold the tests."""


@slow
@pytest.mark.parametrize("window", WINDOWS)
def test_windows_are_inclusive(window):
    """Several tiles of queries and of keys: what lies just outside the window, in a tile or beside it, is not read."""
    assert_error_of_16_bits(operators.window_attention(*window, dim=32), Layout((150, 0, 9, 64)))


@slow
@pytest.mark.parametrize("dim", launch.DIMS)
@pytest.mark.parametrize("operator", ["window", "seed"])
def test_widths_of_a_head(dim, operator):
    made = operators.window_attention(50, 20, dim=dim) if operator == "window" else operators.seed_attention(dim=dim)
    assert_error_of_16_bits(made, Layout((150, 0, 9)))


@pytest.mark.several_blocks
@slow
@pytest.mark.parametrize("operator", ["window", "seed"])
def test_several_blocks_share_the_work(operator):
    made = operators.window_attention(8, 70, dim=32) if operator == "window" else operators.seed_attention(dim=32)
    assert_error_of_16_bits(made, Layout((150, 3, 0, 64, 70)))


@pytest.mark.several_blocks
@slow
def test_keys_of_a_lonely_example_are_cut_into_parts():
    operator, layout = operators.seed_attention(dim=32), Layout((300,))
    config = CONFIGS[launch.chip_for("seed_attention").generation]
    small = {name: config(block=32, stages=2, units=1) for name in ("forward", "dq", "dkv")}
    assert seed_mosaic.parts_of(3, operators.HEADS, layout.rows, 1, 32) == 2

    def call(layout, operands):
        return seed_mosaic.seed_attention(*operands, *layout.offsets, scale=32**-0.5, configs=small)

    assert_error_of_16_bits(operator, layout, call=call)


@slow
@given(
    lengths=st.lists(st.sampled_from([0, 1, 5, 8, 63, 64, 65, 128, 300]), min_size=1, max_size=5),
    window=st.sampled_from([(0, 5), (100, 0), (50, 50)]),
    seed=st.integers(0, 3),
)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lengths(lengths, window, seed):
    """Empty ones, single rows, off the tile, one giant among tiny ones."""
    assert_error_of_16_bits(operators.window_attention(*window, dim=32), Layout(tuple(lengths)), seed=seed)
