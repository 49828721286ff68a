"""A run that is killed at moments that nobody chose ends like one that was not; ``make faults`` kills it 50 times."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests import processes
from tests.experiments.run_folder import lasting
from tests.experiments.tiny import ANY

KILLS = int(os.environ.get("KILLS", "3"))
RUN = (
    *ANY,
    "--run.log-every",
    "3",
    "--run.checkpoint-every",
    "4",
    "--run.eval-every",
    "8",
    "--loader.shuffle",
    "global",
)


def start(directory: Path, workers: int) -> processes.Process:
    return processes.Process(
        [
            sys.executable,
            "-m",
            "experiments.train",
            *RUN,
            "--run.dir",
            str(directory),
            "--loader.workers",
            str(workers),
        ],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


@pytest.mark.slow
@pytest.mark.timeout(300 + 60 * KILLS)
def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(tmp_path):
    began = time.monotonic()
    assert start(tmp_path / "whole", 0).finish().returncode == 0
    whole = time.monotonic() - began
    directory, rng = tmp_path / "killed", np.random.default_rng(0)
    for number in range(KILLS):
        with start(directory, number % 3) as process:
            time.sleep(float(rng.uniform(0.2, 0.9)) * whole)
            process.kill()
            assert process.finish().returncode in (-signal.SIGKILL, 0)
    assert start(directory, 2).finish().returncode == 0
    assert lasting(directory) == lasting(tmp_path / "whole")
