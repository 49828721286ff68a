"""The devices that share a run, as a mesh; `kunlun_jax.training.placement` says what lies where on it."""

import dataclasses

import jax
from jax.sharding import AxisType, Mesh

MOST_DEVICES = 512
"""A mesh has a power of two of devices, this at most."""

DATA = "data"
"""The mesh axis over which batches and large tables are spread."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices that share a run."""

    data: int = 1
    """Devices that each take an equal share of every batch and of the rows of large tables; a power of two."""

    def __post_init__(self):
        if self.data < 1 or MOST_DEVICES % self.data:
            raise ValueError(f"mesh.data is {self.data}; it must be a power of two, 1 to {MOST_DEVICES}")


def make_mesh(config: MeshConfig) -> Mesh | None:
    """The mesh of the first devices of this process; None for one device.

    Raises:
      ValueError: there are fewer devices.
    """
    if config.data == 1:
        return None
    devices = jax.devices()
    if len(devices) < config.data:
        raise ValueError(
            f"mesh.data is {config.data}, and there are {len(devices)} devices ({jax.default_backend()}); for a trial "
            f"on a CPU set JAX_NUM_CPU_DEVICES={config.data}"
        )
    return jax.make_mesh((config.data,), (DATA,), axis_types=(AxisType.Auto,), devices=devices[: config.data])
