"""What the streaming kernels must not get wrong and no interpreter sees."""

import pytest

from pallas_kernels.mosaic import sm90, sm100
from pallas_kernels.mosaic.streaming import LAUNCH_REGISTERS


@pytest.mark.parametrize("kernel", [sm90, sm100])
def test_warpgroups_ask_for_no_more_registers_than_there_are(kernel):
    """Two compute warpgroups and one that loads; the one that asks for more waits for ever, on a chip alone."""
    compute, memory = kernel.COMPUTE_REGISTERS, kernel.MEMORY_REGISTERS
    assert compute % 8 == memory % 8 == 0 and 24 <= memory <= LAUNCH_REGISTERS <= compute <= 255
    assert 2 * compute + memory <= 3 * LAUNCH_REGISTERS
    assert LAUNCH_REGISTERS == 65536 // (3 * 128) // 8 * 8
