"""What would a training step take on many GPUs? ``python -m experiments.dryrun --chip b200 --topology 1x1x8``.

Compiles the training step of presets for chips that are not there, and tells of each device its memory, the bytes that
it sends over NVLink and network, and a prediction of the time. It is the step that ``experiments.train`` runs on a
mesh, with the same kernels, placement and exchange of rows; only that model, state and batch are shapes, so no table is
made, and that bfloat16 is chosen, as on a GPU. Each further topology shows how all of it grows:

    python -m experiments.dryrun kunlun/large --topology 1x1x8 1x8x8 1x64x8

Devices share more examples, not the same ones: each has a batch of --examples, so a batch of all has that times the
devices. Histories are those of the preset's data, or all as long as the preset keeps ("full").

Times are predictions, a range, and nothing was run (`experiments.dry_run.prediction`): every part is taken at the rate
of a datasheet. Memory, kernels and bytes of collectives are what the compiler says.

Needs the CUDA compiler that ``make test`` installs, and no GPU. Rows are written to
``experiments/results/CHIP/dryrun.json`` as they come, with a picture beside it, and one that is there is not compiled
again. A step with three kernels takes a minute to compile, kunlun/large 15 (900 s at b8dd821, on two cores that others
used, too).

Exit code 1: something does not fit into the memory, or did not compile; 2: it could not begin.
"""

import dataclasses
import functools
import json
import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from flax import nnx

from experiments.configs import PRESETS
from experiments.dry_run.fit import fits, remedies
from experiments.dry_run.machine import HOST_DEVICES, MACHINES
from experiments.dry_run.prediction import counted
from experiments.dry_run.report import of, picture, series, table
from experiments.dry_run.worker import Job
from experiments.files import load
from experiments.result_rows import RESULTS, measured_in, store, stored
from kunlun_jax.data.dataset import Dataset, dense_moments
from kunlun_jax.data.open import open_dataset
from kunlun_jax.data.pipeline import capacities
from kunlun_jax.parallel import AXES, MeshConfig
from kunlun_jax.training.config import TrainConfig
from kunlun_jax.training.run import sample_lengths
from pallas_kernels.compile_check import check
from pallas_kernels.jagged import aligned


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of the dry run."""

    presets: Annotated[tuple[str, ...], tyro.conf.Positional] = ("kunlun/large", "kunlun/paper")
    """Presets, MODEL/PRESET or the path of one of your own."""
    chip: Literal["h100", "b200"] = "b200"
    """The chip of every device."""
    topology: tuple[str, ...] = ("1x1x8",)
    """Groups of hosts x hosts in each x GPUs in each host (at most 8); 512 GPUs at most."""
    mesh: MeshConfig = MeshConfig()
    """Shape of the mesh; data is what the other axes leave of the topology."""
    examples: int | None = None
    """Examples of one device's batch; default: the preset's loader.batch_size."""
    lengths: Literal["data", "full"] = "data"
    """Histories as in the preset's data, or all as long as the preset's max_events allow."""
    limit_s: float = 1800.0
    """Seconds that one compilation may take."""
    keep: Path | None = None
    """Folder for the optimized HLO, as text; None keeps none."""
    out: Path | None = None
    """JSON file of the rows; default experiments/results/CHIP/dryrun.json. The picture goes beside it."""
    dirty: bool = False
    """Compile code with uncommitted changes."""

    def __post_init__(self):
        if self.examples is not None and self.examples < 1:
            raise ValueError(f"examples is {self.examples}; it must be at least 1")
        for topology in self.topology:
            sizes = re.fullmatch(r"(\d+)x(\d+)x(\d+)", topology)
            if sizes is None or not 1 <= int(sizes[3]) <= HOST_DEVICES or math.prod(map(int, sizes.groups())) < 2:
                raise ValueError(
                    f"topology is {topology!r}; it must be GROUPSxHOSTSxDEVICES with 2 GPUs or more, at most "
                    f"{HOST_DEVICES} in a host, as in 1x1x8 or 1x8x8"
                )


def devices_of(topology: str) -> int:
    """Devices of a topology."""
    return math.prod(map(int, topology.split("x")))


@functools.cache  # a file is loaded once
def config_of(preset: str) -> TrainConfig:
    """The config of a preset, by its name or the path of its file.

    Raises:
      ValueError: there is none.
    """
    if preset.endswith(".py"):
        return load(Path(preset), "CONFIG", TrainConfig)[2]
    if preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}; there are {', '.join(PRESETS)}, or name a Python file")
    return PRESETS[preset][1]


def on_mesh(config: TrainConfig, mesh: MeshConfig, devices: int, examples: int) -> TrainConfig:
    """The config on so many GPUs, each with so many examples.

    Raises:
      ValueError: the other axes of the mesh do not divide the devices.
    """
    others = mesh.devices // mesh.data
    if devices % others or mesh.data not in (1, devices // others):
        raise ValueError(
            f"the mesh has {mesh.devices} devices and the topology {devices}; leave out mesh.data, and let the other "
            "axes divide the topology"
        )
    model = config.model
    if getattr(model, "dtype", None) == "auto":
        model = dataclasses.replace(model, dtype="bfloat16")  # what "auto" means on a GPU; this process has none
    return dataclasses.replace(
        config,
        model=model,
        mesh=dataclasses.replace(mesh, data=devices // others),
        loader=dataclasses.replace(config.loader, batch_size=devices * examples),
    )


@functools.lru_cache(maxsize=1)
def histories(preset: str, examples: int, kind: str) -> tuple[Dataset, dict[str, int], dict[str, np.ndarray]]:
    """The data, packed rows that a device's batch needs, and lengths of some histories by event type.

    A device gets the room that the fullest batch of `examples` examples takes alone. Of many devices each needs no
    more, since examples are dealt to them by their length.
    """
    config = config_of(preset)
    dataset = open_dataset(config.data)
    loader = dataclasses.replace(config.loader, batch_size=examples)
    capacity, lengths = capacities(dataset, ("train",), loader), sample_lengths(dataset, config)
    if kind == "full":
        most = config.loader.max_events_by_type(dataset.schema)
        lengths = {name: np.full_like(found, most[name]) for name, found in lengths.items()}
        capacity |= {name: examples * int(aligned(np.array([number]))[0]) for name, number in most.items()}
    return dataset, capacity, lengths


def compiled(job: Job, preset: str, folder: Path, limit_s: float) -> dict[str, Any]:
    """What the worker says of a job, or ``{"failed": why}``."""
    own = [str(Path(preset).resolve())] if preset.endswith(".py") else []
    try:
        process = subprocess.run(
            [sys.executable, "-m", "experiments.dry_run.worker", *own],
            input=pickle.dumps(job),
            env=check.environment(folder),
            cwd=check.REPOSITORY,
            capture_output=True,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"did not compile in {limit_s:.0f} s"}
    if process.returncode:
        return {
            "failed": f"exit status {process.returncode}: {check.last_lines(process.stderr.decode(errors='replace'))}"
        }
    return json.loads(process.stdout.decode().splitlines()[-1])


def key_of(row: Mapping[str, Any]) -> tuple:
    """What makes two rows the same, in the order of the table."""
    return row["preset"], row["lengths"], row["examples"], row["devices"], row["topology"], sorted(row["axes"].items())


def run(args: Arguments, path: Path) -> list[dict[str, Any]]:
    """Compiles what is not stored yet; the rows that were asked for."""
    folder, started_in = check.compiler(), measured_in(args.dirty)
    asked = []
    for preset in args.presets:
        config = config_of(preset)
        examples = args.examples or config.loader.batch_size
        for topology in args.topology:
            devices = devices_of(topology)
            on = on_mesh(config, args.mesh, devices, examples)
            axes = {axis: getattr(on.mesh, axis) for axis in AXES}
            name = preset if preset in PRESETS else Path(preset).stem
            where = {"chip": args.chip, "preset": name, "lengths": args.lengths, "examples": examples}
            where |= {"devices": devices, "topology": topology, "axes": axes}
            found = next((row for row in stored(path) if all(row[k] == v for k, v in where.items())), None)
            if found is None or "failed" in found:
                found = {**where, **measure(args, preset, on, topology, examples, folder)}
                load_average = round(os.getloadavg()[0], 2)
                store(path, {**found, "environment": {**started_in, "load_average": load_average}}, key_of)
            asked.append(found)
    return asked


def measure(
    args: Arguments, preset: str, config: TrainConfig, topology: str, examples: int, folder: Path
) -> dict[str, Any]:
    """A row without what it is of: what the compiler says, and the counted work of a device."""
    dataset, capacity, lengths = histories(preset, examples, args.lengths)
    keep = None
    if args.keep is not None:
        args.keep.mkdir(parents=True, exist_ok=True)
        keep = args.keep / f"{Path(preset).stem}-{topology}.hlo"
    job = Job(
        chip=args.chip,
        topology=topology,
        config=config,
        schema=dataset.schema,
        base_rate=dataset.p_train,
        moments=dense_moments(dataset),
        capacity=capacity,
        examples=examples,
        keep=keep,
    )
    print(f"{preset} on {topology}: compiling, {sum(capacity.values()):,} packed rows a device", file=sys.stderr)
    found = compiled(job, preset, folder, args.limit_s)
    model = nnx.eval_shape(job.build)
    read = {event.name for event in model.schema.events}
    lengths = {name: of for name, of in lengths.items() if name in read}
    shared = {
        "capacity": capacity,
        "mean_events": {name: float(of.mean()) for name, of in lengths.items()},
        "dense_parameters": sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))),
    }
    return {**shared, "work": counted(model, lengths, examples, MACHINES[args.chip]), **found}


def main(arguments: list[str] | None = None) -> int:
    """Parses flags, compiles what is missing, prints and draws; returns the exit code."""
    args = tyro.cli(Arguments, args=arguments, prog="experiments.dryrun", description=__doc__)
    machine = MACHINES[args.chip]
    path = args.out or RESULTS / args.chip / "dryrun.json"
    try:
        rows = run(args, path)
    except (ValueError, check.CompilerMissing) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(rows, machine))
    print(f"rows in {path}")
    if series(stored(path)):
        picture(stored(path), path.with_suffix(".png"))
        print(f"picture in {path.with_suffix('.png')}")
    refused = [f"{of(row)}: {row['failed']}" for row in rows if "failed" in row]
    refused += [
        f"{of(row)}: {remedies(row, machine)}" for row in rows if "failed" not in row and not fits(row, machine)
    ]
    for text in refused:
        print(f"error: {text}", file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
