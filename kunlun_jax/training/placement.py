"""What lies where on a mesh: the rules for every leaf of a training state, and one device's program over all devices.

| | where |
|---|---|
| large tables, and what the optimizer keeps of their rows | cut by rows, an equal run on each device |
| dense parameters, and what the optimizer keeps of them | as `kunlun_jax.training.partition` says |
| small tables, the rest | whole on every device |
| batches | an equal share on each device, packed by itself, in the process that has the device |

Source: ours (O).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from kunlun_jax.data.schema import Schema
from kunlun_jax.nn.table_rows import is_dealt
from kunlun_jax.parallel import AXES
from kunlun_jax.training import partition

CUT, WHOLE = PartitionSpec(AXES), PartitionSpec()


def specs(schema: Schema, state: Any, mesh: Mesh) -> Any:
    """Over which axes each leaf of a `TrainState` is cut."""
    of = {name: CUT if is_dealt(schema.tables[name].rows) else WHOLE for name in state.tables}
    optimizer = {name: jax.tree.map(lambda _, spec=of[name]: spec, x) for name, x in state.table_optimizer.items()}
    params = partition.specs(state.params, mesh)
    structure = jax.tree.structure(state.params)

    def is_like_params(node: Any) -> bool:
        return jax.tree.structure(node) == structure

    dense = jax.tree.map(lambda x: params if is_like_params(x) else WHOLE, state.optimizer, is_leaf=is_like_params)
    rest = jax.tree.map(lambda _: WHOLE, state)
    return dataclasses.replace(rest, tables=of, table_optimizer=optimizer, params=params, optimizer=dense)


def shardings(schema: Schema, state: Any, mesh: Mesh | None) -> Any:
    """Where each leaf of a `TrainState` lies; without a mesh all on the first device."""
    if mesh is None:
        device = SingleDeviceSharding(jax.local_devices()[0])
        return jax.tree.map(lambda _: device, state)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(schema, state, mesh))


def put(batch: Any, mesh: Mesh | None) -> Any:
    """A tree of NumPy arrays on the devices, cut along the first axis.

    Args:
      batch: the shares of this process's devices, one after the other.
      mesh: the devices of all processes; None for one device.
    """
    if mesh is None or jax.process_count() == 1:
        return jax.device_put(batch, None if mesh is None else NamedSharding(mesh, CUT))
    processes, place = jax.process_count(), NamedSharding(mesh, CUT)

    def of_all(own: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(place, own, (len(own) * processes, *own.shape[1:]))

    # No less asked for than `device_put`, but JAX counts it among the transfers that happen by the way.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.tree.map(of_all, batch)


def own_rows(array: jax.Array) -> np.ndarray:
    """What this process's devices hold of an array that is cut along its first axis or lies on one device."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate(jax.device_get([shard.data for shard in shards]))


def over_devices(
    function: Callable, schema: Schema, mesh: Mesh | None, *, gives: Literal["step", "logits", "sums"] = "step"
) -> Callable:
    """One device's ``function(state, batch)`` over all of a mesh, each with its share; itself without a mesh.

    Args:
      function: returns what `gives` says.
      schema: of the data.
      mesh: the devices.
      gives: "logits" of its share; "sums", the same on all devices; "step" for ``(state, sums)``.
    """
    if mesh is None:
        return function

    def spread(state: Any, batch: Any) -> Any:
        leaves, structure = jax.tree.flatten(batch)

        def of_device(state: Any, held: list[jax.Array]) -> Any:
            rest = iter(held)
            # XLA of jaxlib 0.11.2 dies of a spread argument without elements, so those are made anew.
            share = [next(rest) if x.size else jnp.zeros((len(x) // mesh.size, *x.shape[1:]), x.dtype) for x in leaves]
            return function(state, structure.unflatten(share))

        of_state = specs(schema, state, mesh)
        return jax.shard_map(
            of_device,
            mesh=mesh,
            in_specs=(of_state, CUT),
            out_specs={"logits": CUT, "sums": WHOLE, "step": (of_state, WHOLE)}[gives],
            check_vma=False,
        )(state, [x for x in leaves if x.size])

    return spread
