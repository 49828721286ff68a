"""The chips that the contract tests of the Mosaic kernels run for: those at hand, or each generation interpreted."""

import jax

# The interpreter imports it at its first kernel, and importing it adds to the key of all traces: programs that were
# traced before would be traced again.
import jax.experimental.pallas.fuser
import pytest

from pallas_kernels.mosaic import tails, target

ON_GPU = jax.default_backend() == "gpu"


@pytest.fixture(params=("chip",) if ON_GPU else ("sm90", "sm100"))
def generation(request):
    return request.param


@pytest.fixture
def chip(generation, capfd, monkeypatch, request):
    """The kernels of a test run on the GPU, or interpreted for `generation`; a race that the interpreter sees fails.

    The interpreter compiles a kernel anew for each thread of each block, so there is one block where that will do. With
    as few rows as these tests have, copies without NaN in gaps would be made and no tails used; here tails are used
    unless a test is marked ``gaps_zeroed``.
    """
    if not request.node.get_closest_marker("gaps_zeroed"):
        monkeypatch.setattr(tails, "pays", lambda *_: True)
    if ON_GPU:
        yield
        return
    processors = 3 if request.node.get_closest_marker("several_blocks") else 1
    with target.interpret(generation, processors=processors, detect_races=True):
        yield
    printed = capfd.readouterr()
    assert "RACE DETECTED" not in printed.out + printed.err
