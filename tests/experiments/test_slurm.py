"""`experiments/slurm.sbatch` with a stand-in for srun, which starts two processes here with Slurm's variables."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from tests import processes
from tests.experiments.tiny import ANY
from tests.several_processes import REPOSITORY

SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
for number in 0 1; do
  SLURM_PROCID=$number SLURM_LOCALID=$number SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1 "$@" &
done
wait -n && wait -n
"""


def job_with_a_free_port() -> int:
    """A job number whose port, of those that JAX derives from it, nobody uses."""
    for number in range(os.getpid(), os.getpid() + 100):
        with socket.socket() as tried:
            if tried.connect_ex(("localhost", 65536 - 2**12 + number % 2**12)):
                return number
    raise AssertionError("a hundred ports are taken")


@pytest.mark.slow
def test_the_batch_script_trains_in_all_tasks(tmp_path):
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(SRUN)
    srun.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{srun.parent}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "SLURM_JOB_ID": str(job_with_a_free_port()),
        "SLURM_NTASKS": "2",
        "SLURM_CPUS_PER_TASK": "1",
    }
    script = Path(REPOSITORY / "experiments/slurm.sbatch")
    flags = (*ANY, "--run.max-steps", "5", "--run.dir", str(tmp_path / "run"))
    done = processes.run(["bash", str(script), *flags], cwd=REPOSITORY, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"process {number} of 2" in done.stderr for number in (0, 1))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 5
    assert done.stdout.count("learning curve") == 1
