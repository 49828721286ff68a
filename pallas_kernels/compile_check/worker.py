"""Compiles one kernel for a chip that need not be there: the process that the check starts.

It is a separate process, since an instruction that the chip lacks can abort the compiler. It reads a pickled
`pallas_kernels.compile_check.catalogue.Case` and takes the name of the chip as its argument; the compiler prints its
reports on standard output because of what `check` set in its environment.
"""

import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from pallas_kernels.chips import Chip
from pallas_kernels.compile_check.catalogue import CHIPS, Case


def description(chip: Chip) -> str:
    """The chip for XLA's compiler, a `GpuTargetConfigProto` as text: with it, no device is queried."""
    return (Path(__file__).parent / f"{chip.name}.txtpb").read_text()


def compile_for(chip: Chip, function: Callable, arguments: Sequence[jax.ShapeDtypeStruct]) -> jax.stages.Compiled:
    """`function` of arrays like `arguments`, compiled for one device of this chip."""
    topology = topologies.get_topology_desc(platform="cuda", target_config=description(chip), topology="1x1x1")
    sharding = NamedSharding(topologies.make_mesh(topology, (1,), ("devices",)), PartitionSpec())
    placed = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in arguments]
    return jax.jit(function).lower(*placed).compile()


def compile_case(case: Case, chip: Chip) -> None:
    """Compiles the case."""
    compile_for(chip, *case.build(case, chip))


if __name__ == "__main__":
    compile_case(pickle.load(sys.stdin.buffer), CHIPS[sys.argv[1]])
