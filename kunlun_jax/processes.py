"""The processes that share a run: how they find each other, agree, and gather what each has of its own.

One process is the usual case and costs nothing: no service starts, and every function here gives back what it got.
With several, process 0 alone writes the run directory, and what it decides goes to all. A function that says so is a
collective: every process has to call it, in the same order.

Source: ours (O), on `jax.distributed` and `jax.experimental.multihost_utils`.
"""

import json
import os
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped

from kunlun_jax.parallel import MeshConfig


def join(config: MeshConfig, environment: Mapping[str, str] = os.environ) -> bool:
    """Connects this process with the others of its run; to be called before anything opens JAX's devices.

    Nothing happens for a run on one device, nor for ``mesh.processes 1``. Else flags count first, then
    ``JAX_COORDINATOR_ADDRESS``, then what Slurm, Open MPI or a Kubernetes Job has set in the environment, which JAX
    reads (`jax.distributed.initialize`).

    Args:
      config: the flags.
      environment: where to look for the variables of a cluster.

    Returns:
      Whether there are several processes now.

    Raises:
      ValueError: neither flags nor environment tell where the others are.
      RuntimeError: they did not come within 5 minutes, or devices are open already.
    """
    named = (config.coordinator, config.processes, config.process)
    if config.devices == 1 or config.processes == 1:
        return False
    if all(item is None for item in named) and not started_together(environment):
        return False
    try:
        jax.distributed.initialize(
            *named,
            # Whoever names all three knows better than an environment that only looks like a cluster's.
            cluster_detection_method=None if None in named else "deactivate",
            heartbeat_timeout_seconds=config.heartbeat_s,
            # A process that fails waits at its end for the others, which wait for it in a collective.
            shutdown_timeout_seconds=config.heartbeat_s,
        )
    except ValueError as error:
        raise ValueError(
            f"{error} Give --mesh.coordinator HOST:PORT --mesh.processes N --mesh.process I, or start the processes by "
            "srun, mpirun or as an indexed Job of Kubernetes; for one process --mesh.processes 1"
        ) from error
    return jax.process_count() > 1


def started_together(environment: Mapping[str, str]) -> bool:
    """Whether the environment says that this is one of several processes, by the variables that JAX reads, too.

    A shell or a batch script of Slurm has some of its variables, but only what srun starts has those of a step.
    """
    if "JAX_COORDINATOR_ADDRESS" in environment:
        return True
    if "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1:
        return True
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return True
    return {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()


def is_first() -> bool:
    """Whether this is process 0, the one that writes."""
    return jax.process_index() == 0


def agreed[T](make: Callable[[], T]) -> T:
    """What process 0 makes, in every process; a collective.

    Args:
      make: called in process 0 alone; returns plain JSON values.

    Raises:
      Exception: what `make` raised. In the other processes it is a ValueError with the same text.
    """
    if jax.process_count() == 1:
        return make()
    found, failure = {}, None
    if is_first():
        try:
            found = {"value": make()}
        except Exception as error:
            found, failure = {"error": str(error)}, error
    text = np.frombuffer(json.dumps(found).encode(), np.uint8)
    with jax.transfer_guard("allow"):
        size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
        text = multihost_utils.broadcast_one_to_all(text if is_first() else np.zeros(size, np.uint8))
    if failure is not None:
        raise failure
    found = json.loads(bytes(text))
    if "error" in found:
        raise ValueError(f"process 0: {found['error']}")
    return found["value"]


def gathered(own: Shaped[np.ndarray, "batches own *rest"]) -> Shaped[np.ndarray, "batches all *rest"]:
    """The examples of all processes, in their order within each batch; a collective.

    Args:
      own: those of this process, as many in each.
    """
    if jax.process_count() == 1:
        return own
    with jax.transfer_guard("allow"):
        return np.concatenate(multihost_utils.process_allgather(own), axis=1)
