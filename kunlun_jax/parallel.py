"""The devices that share a run, as a mesh; `kunlun_jax.training.placement` says what lies where on it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

MOST_DEVICES = 512
"""A mesh has a power of two of devices, this at most."""

DATA, FSDP, EXPERTS = "data", "fsdp", "experts"
AXES = (DATA, FSDP, EXPERTS)
"""The mesh axes, the last over the nearest devices. Batches and the rows of large tables are spread over all of them,
dense parameters over `FSDP`, and those of experts over `EXPERTS`, too."""

Axis = str | tuple[str, ...]
"""One mesh axis, or several taken as one."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices that share a run: data x fsdp x experts of them, those of all processes together.

    Each takes an equal share of every batch and of the rows of large tables.
    """

    data: int = 1
    """Groups of fsdp x experts devices, each of which holds all dense parameters, a power of two; with fsdp and experts
    1 these are the devices of the run."""
    fsdp: int = 1
    """Devices over which the dense parameters and their optimizer's state are cut, a power of two; a parameter is put
    together where it is used."""
    experts: int = 1
    """Devices that share the Wukong experts of a Kunlun, a power of two that divides model.experts. Each computes its
    own, for the examples of all of them."""
    coordinator: str | None = None
    """HOST:PORT at which process 0 waits for the others; default: what the cluster says (docs/cluster.md)."""
    processes: int | None = None
    """Processes that share the run, each with as many devices; default: what the cluster says, else 1."""
    process: int | None = None
    """Which of them this is, from 0; default: what the cluster says."""
    heartbeat_s: int = 100
    """Seconds after which a process that gives no sign of life counts as dead, and the others end."""

    def __post_init__(self):
        for name in AXES:
            value = getattr(self, name)
            if value < 1 or MOST_DEVICES % value:
                raise ValueError(f"mesh.{name} is {value}; it must be a power of two, 1 to {MOST_DEVICES}")
        if self.devices > MOST_DEVICES:
            raise ValueError(f"{self.named} is {self.devices} devices; they must be {MOST_DEVICES} at most")
        if self.processes is not None and (self.processes < 1 or self.devices % self.processes):
            raise ValueError(
                f"mesh.processes is {self.processes}; it must divide {self.named} = {self.devices}, the devices of all"
            )
        if self.process is not None and not 0 <= self.process < (self.processes or MOST_DEVICES):
            raise ValueError(f"mesh.process is {self.process}; it must be from 0 to mesh.processes - 1")
        if self.coordinator is not None and not self.coordinator.rpartition(":")[2].isdigit():
            raise ValueError(f"mesh.coordinator is {self.coordinator!r}; it must be HOST:PORT, as in node001:12345")
        if self.heartbeat_s < 1:
            raise ValueError(f"mesh.heartbeat_s is {self.heartbeat_s}; it must be at least 1")

    @property
    def devices(self) -> int:
        """How many there are, those of all processes together."""
        return self.data * self.fsdp * self.experts

    @property
    def named(self) -> str:
        """The axes that are more than one device, for messages: "mesh.data 2 x mesh.fsdp 4"."""
        used = [name for name in AXES if getattr(self, name) > 1] or [DATA]
        return " x ".join(f"mesh.{name} {getattr(self, name)}" for name in used)


def make_mesh(config: MeshConfig) -> Mesh | None:
    """The mesh of the first devices of each process, those of one after those of another; None for one device.

    Raises:
      ValueError: there are fewer devices, or they cannot be had in equal numbers from all processes; or there are not
        as many processes as the config says.
    """
    processes, count = jax.process_count(), config.devices
    if config.processes not in (None, processes):
        raise ValueError(
            f"mesh.processes is {config.processes}, and this run has {processes}; `kunlun_jax.processes.join` brings "
            "them together before JAX's devices are opened"
        )
    if count % processes:
        raise ValueError(
            f"{config.named} is {count} devices; they must be a multiple of the {processes} processes of this run"
        )
    if count == 1:
        return None
    each = count // processes
    there = [[device for device in jax.devices() if device.process_index == index] for index in range(processes)]
    devices = [device for of_process in there for device in of_process[:each]]
    if len(devices) < count:
        found = jax.device_count()
        of_processes = f" in {processes} processes" if processes > 1 else ""
        raise ValueError(
            f"{config.named} is {count} devices, and there are {found}{of_processes} ({jax.default_backend()}); for a "
            f"trial on a CPU set JAX_NUM_CPU_DEVICES={each}"
        )
    return mesh_of(config, devices)


def mesh_of(config: MeshConfig, devices: Sequence[Any]) -> Mesh:
    """The mesh of these devices, which may belong to a topology that is not there, in their order."""
    shape = [getattr(config, name) for name in AXES]
    return Mesh(np.asarray(devices, object).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def devices_along(axis: str) -> int:
    """Devices of a mesh axis inside `jax.shard_map`; 1 outside of any."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[axis] if axis in mesh.manual_axes else 1
