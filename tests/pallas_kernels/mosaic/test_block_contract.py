"""The contract for the block of the personalized FFN with its norms fused; see test_gdpa_contract."""

import jax.numpy as jnp
import pytest

from pallas_kernels.activations import ACTIVATIONS
from tests.pallas_kernels import operators
from tests.pallas_kernels.mosaic.accuracy import assert_error_of_16_bits, slow
from tests.pallas_kernels.one_program import MosaicContract
from tests.pallas_kernels.operators import Layout

pytestmark = pytest.mark.usefixtures("chip")


class TestBlockContract(MosaicContract):
    @pytest.fixture
    def operator(self):
        return operators.gdpa_block(dim=64)


@pytest.mark.several_blocks
@slow
def test_several_blocks_share_the_work():
    """More keys than one tile, the last of them masked; an item of two tiles whose second one is empty."""
    assert_error_of_16_bits(operators.gdpa_block(dim=32, keys=136), Layout((150, 3, 0, 64, 70)))


@slow
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    assert_error_of_16_bits(operators.gdpa_block(activation, dim=32, keys=64), Layout((3, 0, 40)))


@slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_widest_heads(dtype):
    assert_error_of_16_bits(operators.gdpa_block(dim=128, keys=128), Layout((150, 0, 9)), dtype)
