"""What a process knows of the others before there are any, and what it says of flags that cannot be right."""

import numpy as np
import pytest

from kunlun_jax.parallel import MeshConfig, make_mesh
from kunlun_jax.processes import agreed, gathered, is_first, join, started_together

SLURM = {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}
STEP = {"SLURM_STEP_NODELIST": "node[1-2]"}
JOB = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}


@pytest.mark.parametrize(
    ("environment", "together"),
    [
        ({}, False),
        (SLURM, False),  # a batch script, without srun
        (SLURM | STEP, True),
        (SLURM | STEP | {"SLURM_NTASKS": "1"}, False),  # srun of one task, as for a shell
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        (JOB, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),  # a pod by itself
        ({"JAX_COORDINATOR_ADDRESS": "host:1"}, True),
    ],
)
def test_what_the_environment_says(environment, together):
    assert started_together(environment) == together


@pytest.mark.parametrize(
    ("config", "environment"),
    [
        (MeshConfig(8), {}),
        (MeshConfig(1), SLURM | STEP),
        (MeshConfig(8, processes=1), SLURM | STEP),
    ],
)
def test_a_process_stays_alone(config, environment, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("jax.distributed.initialize was called")

    monkeypatch.setattr("jax.distributed.initialize", refuse)
    assert not join(config, environment)


def test_flags_reach_jax(monkeypatch):
    called = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *args, **more: called.append((args, more)))
    join(MeshConfig(8, coordinator="host0:1234", processes=2, process=1, heartbeat_s=7), SLURM | STEP)
    join(MeshConfig(8), SLURM | STEP)
    times = {"heartbeat_timeout_seconds": 7, "shutdown_timeout_seconds": 7}
    assert called[0] == (("host0:1234", 2, 1), {"cluster_detection_method": "deactivate", **times})
    assert called[1][0] == (None, None, None) and called[1][1]["cluster_detection_method"] is None


def test_half_of_the_flags_without_a_cluster(monkeypatch):
    def unknown(*_, **__):
        raise ValueError("Number of processes must be defined.")

    monkeypatch.setattr("jax.distributed.initialize", unknown)
    with pytest.raises(ValueError, match=r"must be defined.*--mesh\.coordinator HOST:PORT --mesh\.processes N"):
        join(MeshConfig(8, coordinator="host0:1234"), {})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"processes": 3}, r"mesh\.processes is 3; it must divide mesh\.data 8 = 8"),
        ({"processes": 0}, r"mesh\.processes is 0"),
        ({"processes": 2, "process": 2}, r"mesh\.process is 2; it must be from 0 to mesh\.processes - 1"),
        ({"coordinator": "host0"}, r"mesh\.coordinator is 'host0'; it must be HOST:PORT"),
        ({"heartbeat_s": 0}, r"mesh\.heartbeat_s is 0"),
    ],
)
def test_flags_that_cannot_be_right(fields, message):
    with pytest.raises(ValueError, match=message):
        MeshConfig(8, **fields)


def test_processes_that_have_not_been_joined():
    with pytest.raises(ValueError, match=r"mesh\.processes is 2, and this run has 1"):
        make_mesh(MeshConfig(8, processes=2))


def test_one_process_agrees_with_itself():
    assert is_first() and agreed(lambda: [3]) == [3]
    own = np.zeros((2, 3))
    assert gathered(own) is own
    with pytest.raises(KeyError, match="why"):
        agreed(lambda: {}["why"])
