"""Compiles the training step for devices that are not there: the process that `experiments.dryrun` starts.

It is a separate process, since what the chip lacks can abort the compiler (`pallas_kernels.compile_check`). It reads a
pickled `Job`, and prints a line of JSON with what the compiler says of one device's program. No parameter, table or
batch is allocated: model and state are shapes.
"""

import dataclasses
import json
import logging
import pickle
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding

from experiments.dry_run import hlo, machine
from experiments.files import load
from kunlun_jax.batch import Batch, Jagged
from kunlun_jax.data.dataset import Moments
from kunlun_jax.data.schema import Schema
from kunlun_jax.models.base import Model
from kunlun_jax.parallel import mesh_of
from kunlun_jax.training.config import TrainConfig
from kunlun_jax.training.placement import CUT, shardings
from kunlun_jax.training.step import Trainer, TrainState
from pallas_kernels.compile_check.worker import description
from pallas_kernels.mosaic import target

STEPS = 1000
"""Of the run whose schedule the optimizer follows; any number makes the same program but for constants."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A step to compile.

    Attributes:
      chip: a name in `machine.MACHINES`.
      topology: "SLICESxHOSTSxDEVICES", as XLA's CUDA plugin reads it.
      config: its mesh has as many devices; its model says which dtype it computes in.
      schema: of the data.
      base_rate: of its tasks.
      moments: of its dense features.
      capacity: packed rows of one device, by event type and multi-valued feature.
      examples: of one device's batch.
      keep: where the optimized HLO goes; None keeps it nowhere.
    """

    chip: str
    topology: str
    config: TrainConfig
    schema: Schema
    base_rate: tuple[float, ...]
    moments: Moments | None
    capacity: Mapping[str, int]
    examples: int
    keep: Path | None = None

    @property
    def per_host(self) -> int:
        """Devices of a host."""
        return int(self.topology.rpartition("x")[2])

    def build(self) -> Model:
        """A new model, as a run builds it."""
        rngs = nnx.Rngs(params=jax.random.key(self.config.run.seed))
        return self.config.model.build(self.schema, base_rate=self.base_rate, dense_moments=self.moments, rngs=rngs)

    def trainer(self, model: Model, mesh: Mesh) -> Trainer:
        """What binds it to its optimizers."""
        run = self.config.run
        return Trainer(model, self.config.optimizer, steps=STEPS, log_every=run.log_every, seed=run.seed, mesh=mesh)


def abstract_trainer(job: Job, mesh: Mesh) -> tuple[Trainer, TrainState]:
    """A trainer whose parameters are shapes, and the state of a new run as shapes and places."""
    trainer = job.trainer(nnx.eval_shape(job.build), mesh)
    state = jax.eval_shape(lambda: job.trainer(job.build(), mesh).init())
    places = shardings(trainer.schema, state, mesh)
    return trainer, jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, places)


def abstract_batch(schema: Schema, capacity: Mapping[str, int], examples: int, mesh: Mesh) -> Batch:
    """A batch of all devices as shapes and places, as `kunlun_jax.data.pack` packs it for each."""
    place = NamedSharding(mesh, CUT)

    def of(rows: int, kind: Any, *rest: int) -> Any:
        return jax.ShapeDtypeStruct((rows * mesh.size, *rest), np.dtype(kind), sharding=place)

    def packed(values: Any) -> Jagged:
        return Jagged(values, of(examples + 1, np.int32), of(examples, np.int32))

    events = {
        event.name: packed(
            {
                "ids": of(capacity[event.name], np.int32, len(event.categorical)),
                "dense": of(capacity[event.name], np.float32, len(event.dense)),
                "age": of(capacity[event.name], np.float32),
            }
        )
        for event in schema.events
    }
    return Batch(
        categorical=of(examples, np.int32, len(schema.categorical)),
        multi_valued={f.name: packed(of(capacity[f.name], np.int32)) for f in schema.multi_valued},
        dense=of(examples, np.float32, len(schema.dense)),
        events=events,
        labels=of(examples, np.float32, len(schema.tasks)),
        weights=of(examples, np.float32),
        request_time=of(examples, np.uint32),
        row=of(examples, np.int32),
    )


class Choices(logging.Handler):
    """Which implementation each operator is traced with, as `LOGGERS` say it."""

    LOGGERS = "pallas_kernels.dispatch", "pallas_kernels.operators.gdpa.block"

    def __init__(self):
        super().__init__()
        self.found: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Notes "OPERATOR: IMPLEMENTATION", or what gdpa's block says of its norms."""
        if isinstance(record.args, tuple) and len(record.args) > 1:
            operator, implementation, *_ = record.args
            self.found.add(f"{operator}: {implementation}")
        else:
            self.found.add(record.getMessage())


def held(tree: Any) -> int:
    """Bytes that one device holds of shapes with places."""
    leaves = jax.tree.leaves(tree)
    return sum(int(np.prod(x.sharding.shard_shape(x.shape), dtype=np.int64)) * x.dtype.itemsize for x in leaves)


def held_by_kind(state: TrainState, batch: Batch) -> dict[str, int]:
    """Bytes that one device holds of what goes into a step."""
    named = {
        "parameters": state.params,
        "optimizer state": state.optimizer,
        "tables": state.tables,
        "table optimizer state": state.table_optimizer,
        "batch": batch,
    }
    found = {name: held(tree) for name, tree in named.items()}
    return {**found, "rest of the state": held(state) + found["batch"] - sum(found.values())}


def compile_job(job: Job) -> dict[str, Any]:
    """What the compiler says of the step; bytes and runs are those of one device and one step."""
    chip = machine.MACHINES[job.chip].chip
    topology = topologies.get_topology_desc(platform="cuda", target_config=description(chip), topology=job.topology)
    devices = sorted(topology.devices, key=lambda device: device.id)
    if [device.process_index for device in devices] != [n // job.per_host for n in range(len(devices))]:
        raise ValueError(f"the devices of topology {job.topology} are not numbered host by host")
    mesh = mesh_of(job.config.mesh, devices)
    trainer, state = abstract_trainer(job, mesh)
    batch = abstract_batch(job.schema, job.capacity, job.examples, mesh)
    chosen = Choices()
    for name in chosen.LOGGERS:
        logging.getLogger(name).addHandler(chosen)
        logging.getLogger(name).setLevel(logging.INFO)
    began = time.perf_counter()
    # Block sizes are those that a device of this kind is tuned for, where they are.
    with target.build_for(target.Target(chip.generation, chip.multiprocessors, device_kind=chip.device_kind)):
        compiled = trainer.compile_step(state, batch)
    seconds = time.perf_counter() - began
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None and memory is not None, "the compiler tells neither program nor memory"
    if job.keep is not None:
        job.keep.write_text(text)
    module = hlo.read(text)
    return {
        "mesh": dict(mesh.shape),
        "memory": held_by_kind(state, batch)
        | {
            "temporaries": memory.temp_size_in_bytes,
            "results beside the state": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
        },
        "argument_bytes": memory.argument_size_in_bytes,
        "collectives": machine.summary(module.collectives(), mesh.size, job.per_host),
        "mosaic_calls": module.mosaic_calls(),
        "implementations": sorted(chosen.found),
        "moved_bytes": module.moved(),
        "hlo_instructions": sum(map(len, module.computations.values())),
        "compile_seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    # A preset that is a file may hold its own model, which the job then names.
    for file in sys.argv[1:]:
        load(Path(file), "CONFIG", TrainConfig)
    print(json.dumps(compile_job(pickle.load(sys.stdin.buffer))))
