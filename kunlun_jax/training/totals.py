"""Counts of all processes: each knows what went into its own shares of the batches, a metrics line tells of all.

Source: ours (O).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from kunlun_jax.data.pack import Counts
from kunlun_jax.processes import is_first
from kunlun_jax.training.placement import CUT, WHOLE, put


def of_all(counts: Counts, mesh: Mesh | None) -> Callable[[], Counts]:
    """A function that tells the sum over all processes; a collective.

    The numbers are sent at once, behind the steps that are under way, and fetched only when the function is called: so
    no step waits for them.

    Args:
      counts: of this process; `events_of_fullest`, which every process knows of the whole batch, is not added up.
      mesh: devices that share the run.
    """
    if mesh is None or jax.process_count() == 1:
        return lambda: counts
    counts = dataclasses.replace(counts, events_of_fullest=counts.events_of_fullest if is_first() else 0)
    numbers, structure = jax.tree.flatten(dataclasses.asdict(counts))
    # As halves, for JAX has no 64-bit integers here; the first of this process's devices brings them.
    halves = np.array(numbers, np.int64).view(np.int32)
    rows = np.zeros((mesh.size // jax.process_count(), len(halves)), np.int32)
    rows[0] = halves
    sent = _everywhere(mesh)(put(rows, mesh))

    def fetch() -> Counts:
        total = np.ascontiguousarray(jax.device_get(sent)).view(np.int64).sum(axis=0)
        return Counts(**jax.tree.unflatten(structure, total.tolist()))

    return fetch


def own_part(counts: Counts) -> Counts:
    """What this process goes on from, given the counts of all in a checkpoint: the first has them, the others zeros."""
    if is_first():
        return counts
    return Counts(**jax.tree.map(lambda _: 0, dataclasses.asdict(counts)))


@functools.cache
def _everywhere(mesh: Mesh):
    return jax.jit(lambda x: x, in_shardings=NamedSharding(mesh, CUT), out_shardings=NamedSharding(mesh, WHOLE))
