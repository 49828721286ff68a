"""The rule for the error of a 16-bit kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pallas_kernels import operators
from tests.pallas_kernels.operators import with_gradients

# Interpreted kernels take seconds each: on a CPU the wider part of the tests waits for `make test-slow`.
slow = pytest.mark.usefixtures() if jax.default_backend() == "gpu" else pytest.mark.slow


def assert_error_of_16_bits(operator, layout, dtype=jnp.bfloat16, seed=20, call=None):
    """Within twice (output) and five times (gradients) the error of a plain program in `dtype`; padding is zero.

    `call` replaces ``operator.call("mosaic", ...)``.
    """
    operands, cotangent, exact = operators.problem(operator, layout, dtype, seed)
    call = call or (lambda *a: operator.call("mosaic", *a))
    actual = with_gradients(call, layout, operands, cotangent)
    plain = operators.plain(operator, layout, dtype, seed)
    for x, y, z, factor, packed in zip(actual, plain, exact, (2, 5, 5, 5), operator.layouts(layout), strict=True):
        x, y = (np.asarray(array, np.float32) for array in (x, y))
        if packed:
            np.testing.assert_array_equal(x[~packed.mask], 0)
            x, y, z = (array[packed.mask] for array in (x, y, z))
        # A row that sees one key alone has a gradient of 0, which the plain program meets exactly and a kernel to the
        # rounding of two float32 numbers that cancel.
        assert np.abs(x - z).max(initial=0) <= factor * max(np.abs(y - z).max(initial=0), 2**-20)
