"""A run that is killed at moments that nobody chose ends like one that was not; ``make faults`` kills it 50 times."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests import processes
from tests.data.sets import fake_kuairand
from tests.experiments.run_folder import lasting
from tests.experiments.tiny import ANY, ANY_MODEL
from tests.slowness import slower

KILLS = int(os.environ.get("KILLS", "3"))
ORDER = ("--loader.shuffle", "global", "--run.eval-every", "8")


@pytest.fixture(params=["synthetic", "kuairand"])
def flags(request, tmp_path) -> tuple[str, ...]:
    """A tiny run on the synthetic world, or on a log in KuaiRand's layout."""
    if request.param == "synthetic":
        return (*ANY, *ORDER)
    root = fake_kuairand.write(tmp_path / "kuairand", fake_kuairand.make_log())
    where = ("--data.root", str(root), "--data.cache", str(tmp_path / "cache"))
    return ("pooled_product/kuairand", *ANY_MODEL[1:], *where, *ORDER)


def start(flags: tuple[str, ...], directory: Path, workers: int) -> processes.Process:
    more = (f"--run.dir={directory}", f"--loader.workers={workers}")
    return processes.Process(
        [sys.executable, "-m", "experiments.train", *flags, *more],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


@pytest.mark.slow
@pytest.mark.timeout((300 + 60 * KILLS) * slower())
def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(flags, tmp_path):
    for name in ("compiled", "whole"):  # the second one takes what the others take
        began = time.monotonic()
        assert start(flags, tmp_path / name, 0).finish().returncode == 0
    whole = time.monotonic() - began
    rng, killed, ended = np.random.default_rng(0), 0, 0
    while killed < KILLS:
        directory = tmp_path / f"killed.{ended}"
        with start(flags, directory, killed % 3) as process:
            time.sleep(float(rng.uniform(0.2, 1.0)) * whole)
            process.kill()
            code = process.finish().returncode
        if code == -signal.SIGKILL:
            killed += 1
        else:  # it had come to its end, and the next one begins
            assert code == 0 and lasting(directory) == lasting(tmp_path / "whole")
            ended += 1
    assert start(flags, tmp_path / f"killed.{ended}", 2).finish().returncode == 0
    assert lasting(tmp_path / f"killed.{ended}") == lasting(tmp_path / "whole")
