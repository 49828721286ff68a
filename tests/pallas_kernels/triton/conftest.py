"""The Triton kernels of a test run on the GPU that is there, or else in Triton's interpreter."""

import jax
import pytest

from pallas_kernels.triton import target

ON_GPU = jax.default_backend() == "gpu"


@pytest.fixture
def chip():
    """Skips where the kernels cannot run: by name and with the reason, so that `-ra` counts it."""
    if ON_GPU:
        found = target.current()
        if isinstance(found, str):
            pytest.skip(f"Triton kernels: {found}")
        yield
        return
    pytest.importorskip("triton", reason="Triton kernels: triton is not installed, nor is there a GPU")
    with target.interpret():
        yield


@pytest.fixture
def implementation():
    return "triton"
