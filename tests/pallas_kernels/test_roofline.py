"""Rooflines against numbers worked out by hand."""

import numpy as np
import pytest

from pallas_kernels import roofline
from pallas_kernels.chips import B200, H100, chip_of
from pallas_kernels.operators.gdpa import shapes

FULL = np.full(1152, 1024)


def test_the_published_case_by_hand():
    """B 1152, 1024 queries, 256 keys, 4 heads of 128: 4 * 4 * 128 * 1152 * 1024 * 256 FLOPs."""
    cost = shapes.cost(FULL, keys=256, heads=4, dim=128)
    assert cost.forward_flops == 618_475_290_624
    forward = roofline.limit(cost, "forward", H100, heads=4, activation="gelu_tanh")
    assert forward.matrix == pytest.approx(0.6254e-3, rel=1e-3)
    # q and the output have 1,179,648 rows, k and v 294,912, of 1024 bytes each: 3.02 GB.
    assert forward.memory == pytest.approx(3.0199e9 / 3.35e12, rel=1e-3)
    assert forward.special == pytest.approx(1_207_959_552 / (16 * 132 * 1.83e9), rel=1e-6)
    assert (forward.bound, forward.seconds) == ("memory", forward.memory)
    assert forward.flops_per_second == pytest.approx(686e12, rel=1e-2)
    backward = roofline.limit(cost, "backward", H100, heads=4, activation="gelu_tanh")
    assert backward.bound == "matrix" and backward.seconds == pytest.approx(2.5 * forward.matrix)


@pytest.mark.parametrize(("chip", "ratio"), [(H100, 0.5), (B200, 1.0)], ids=lambda x: getattr(x, "name", None))
def test_special_functions_beside_matrix_products_at_128(chip, ratio):
    cost = shapes.cost(FULL, keys=256, heads=4, dim=128)
    forward = roofline.limit(cost, "forward", chip, heads=4, activation="gelu_tanh")
    assert forward.special / forward.matrix == pytest.approx(ratio, abs=0.01)
    half = roofline.limit(cost, "forward", chip, heads=4, activation="gelu_tanh", polynomial=0.5)
    assert half.special == pytest.approx(forward.special / 2)
    assert roofline.limit(cost, "forward", chip, heads=4, activation="relu").special == 0


def test_narrow_heads_are_bound_by_special_functions():
    cost = shapes.cost(FULL, keys=256, heads=4, dim=32)
    assert roofline.limit(cost, "forward", H100, heads=4, activation="silu").bound == "special"


def test_names_of_devices():
    assert chip_of("NVIDIA H100 80GB HBM3") is H100
    assert chip_of("NVIDIA B200") is B200
    assert chip_of("NVIDIA H100 PCIe") is None and chip_of("cpu") is None


def test_refusals():
    cost = shapes.cost(FULL, keys=256, heads=4, dim=32)
    with pytest.raises(ValueError, match="activation='sine' has no count"):
        roofline.limit(cost, "forward", H100, heads=4, activation="sine")
    with pytest.raises(ValueError, match="polynomial=2"):
        roofline.limit(cost, "forward", H100, heads=4, activation="gelu", polynomial=2.0)


def test_no_work_takes_no_time():
    cost = shapes.cost(np.zeros(2, int), keys=8, heads=4, dim=32)
    nothing = roofline.limit(cost, "forward", H100, heads=4, activation="gelu")
    assert nothing.flops_per_second == 0 and nothing.bound == "memory"
