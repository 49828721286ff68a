"""The hosts that a dry run is for: memory of a chip, rates of the links, and what a collective sends over each."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from experiments.dry_run.hlo import Collective
from pallas_kernels.chips import B200, H100, Chip

USABLE = 0.92
"""Share of a chip's memory that a program may take (O): the rest is for CUDA, NCCL's buffers and holes between arrays.
``XLA_PYTHON_CLIENT_MEM_FRACTION`` has to allow it; unless set it is 0.75."""
HOST_DEVICES = 8
"""GPUs of a host at most. They are joined by NVLink, and those of two hosts by the network."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """A host of one kind of chip.

    Attributes:
      chip: each of its `HOST_DEVICES`.
      memory: of a chip, bytes.
      nvlink: bytes/s that a GPU sends to others of its host, as many as it receives meanwhile.
      network: bytes/s that a GPU sends to other hosts, as many as it receives meanwhile.
      source: where the three are published.
    """

    chip: Chip
    memory: int
    nvlink: float
    network: float
    source: str


MACHINES = {
    "h100": Machine(
        H100,
        80 * 10**9,
        450e9,
        50e9,
        "DGX H100's datasheet: 640 GB and 7.2 TB/s of NVLink for 8 GPUs, one ConnectX-7 of 400 Gb/s each (from memory)",
    ),
    "b200": Machine(
        B200,
        180 * 10**9,
        900e9,
        50e9,
        "NVIDIA DGX B200 User Guide, Introduction: 1,440 GB and 14.4 TB/s of NVLink for 8 GPUs, 8 x 400 Gb/s",
    ),
}
"""Chip -> its host. NVLink is published for both ways together, so here it is half."""


def sent(collective: Collective, devices: int, per_host: int) -> dict[str, float]:
    """Bytes that a device sends over each link in a step, if the collective sends as little as it can.

    An all-to-all sends each other device its part. What adds or gathers does so inside of hosts first, so that one copy
    of each part crosses the network, a host's devices each sending a share.

    Args:
      collective: as one device runs it.
      devices: of the mesh, numbered host by host.
      per_host: how many of them a host has.

    Raises:
      ValueError: groups that do not all reach as far, or a host with unequal shares of a group.
    """
    groups = collective.groups or (tuple(range(devices)),)
    if collective.kind == "collective-permute":
        far = any(a // per_host != b // per_host for a, b in groups)
        whole = collective.times * collective.bytes
        return {"nvlink": 0.0 if far else whole, "network": whole if far else 0.0}
    shapes = {_spread(group, per_host) for group in groups}
    if len(shapes) != 1:
        raise ValueError(f"groups of a {collective.kind} are spread over hosts in different ways: {sorted(shapes)}")
    ((hosts, local),) = shapes
    size, whole = hosts * local, collective.times * collective.bytes
    if collective.kind in ("all-to-all", "ragged-all-to-all"):
        return {"nvlink": whole * (local - 1) / size, "network": whole * (size - local) / size}
    rounds = 2 if collective.kind == "all-reduce" else 1
    return {
        "nvlink": rounds * whole * (local - 1) / local,
        "network": rounds * whole * (hosts - 1) / hosts / local,
    }


def _spread(group: Sequence[int], per_host: int) -> tuple[int, int]:
    """Hosts of a group, and its devices in each."""
    held: dict[int, int] = {}
    for device in group:
        held[device // per_host] = held.get(device // per_host, 0) + 1
    if len(set(held.values())) != 1:
        raise ValueError(f"the group {list(group)} has unequal shares in its hosts: {held}")
    return len(held), next(iter(held.values()))


def summary(collectives: Sequence[Collective], devices: int, per_host: int) -> list[dict[str, Any]]:
    """A row for each kind of collective and size of its groups: runs, bytes of results, and bytes sent by link."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for one in collectives:
        size = len(one.groups[0]) if one.groups else devices
        row = found.setdefault(
            (one.kind, size),
            {"kind": one.kind, "group_size": size, "runs": 0, "bytes": 0.0, "nvlink": 0.0, "network": 0.0},
        )
        row["runs"] += one.times
        row["bytes"] += one.times * one.bytes
        for link, number in sent(one, devices, per_host).items():
            row[link] += number
    return [found[key] for key in sorted(found)]
