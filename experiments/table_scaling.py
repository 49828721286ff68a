"""Does a training step cost more with a larger table? ``python -m experiments.table_scaling``.

Takes the preset kunlun/small on the synthetic world with embeddings of 32, and swaps its item table for one of 1e5,
1e6, 1e7 and 5e7 rows (6.4 GB). Each batch reads tens of thousands of the table's ids, all drawn uniformly, which is
the worst case for caches. All sizes are held at once and stepped in turn, so that a busy machine slows all of them
alike. Needs about 11 GB of memory and takes about 5 minutes on two idle CPU cores. Writes
``experiments/results/cpu/table_scaling.json`` and a picture beside it; exits 1 if a size costs more than 1.3 times
the smallest.

With ``--devices 8`` the process has as many CPU devices, and the table is cut over them by rows. With ``--restore`` the
largest table then goes into a checkpoint and back, and the restored state has to go on bit for bit:

    python -m experiments.table_scaling --devices 8 --dim 16 --rows 1000000 100000000 --rounds 5 --restore \
        --out experiments/results/cpu/table_scaling_devices.json
"""

import dataclasses
import gc
import json
import os
import statistics
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from flax import nnx
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from experiments.configs.kunlun import small
from experiments.step_times import StepTimes
from kunlun_jax.batch import Batch
from kunlun_jax.data.dataset import Dataset
from kunlun_jax.data.open import open_dataset
from kunlun_jax.data.pipeline import capacities, make_loader
from kunlun_jax.data.schema import Schema
from kunlun_jax.parallel import MeshConfig, make_mesh
from kunlun_jax.provenance import environment
from kunlun_jax.training.checkpoint import Checkpoints
from kunlun_jax.training.run_directory import write_atomic
from kunlun_jax.training.step import Trainer, TrainState

TABLE = "item_id"
LIMIT = 1.3
"""Largest ratio to the smallest table that counts as flat."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of the measurement."""

    rows: tuple[int, ...] = (100_000, 1_000_000, 10_000_000, 50_000_000)
    """Rows of the table, smallest first."""
    dim: int = 32
    """Width of the embeddings, float32."""
    rounds: int = 15
    """Times that each size is measured, in turn with the others; the median is reported."""
    steps: int = 4
    """Steps of one measurement, each on another batch."""
    train_rows: int = 4096
    """Rows of the synthetic world from which batches are packed."""
    devices: int = 1
    """CPU devices of this process, a power of two, over which batches and tables are cut."""
    restore: bool = False
    """Put the largest table into a checkpoint, restore it, and compare what follows."""
    out: Path = Path("experiments/results/cpu/table_scaling.json")
    """JSON file for the result; the picture goes beside it."""

    def __post_init__(self):
        if not self.rows or list(self.rows) != sorted(set(self.rows)):
            raise ValueError(f"rows is {self.rows}; name at least one size, smallest first")
        for name in ("rounds", "steps", "dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        MeshConfig(data=self.devices)


def with_random_ids(schema: Schema, batch: Batch, table: str, rows: int, seed: int) -> Batch:
    """`batch` (on the host) with ids uniform over ``0 .. rows - 1`` wherever a context or event field reads `table`."""
    rng = np.random.default_rng(seed)
    categorical = np.array(batch.categorical)
    for column, feature in enumerate(schema.categorical):
        if feature.table_name == table:
            categorical[:, column] = rng.integers(0, rows, len(categorical))
    events = {}
    for event in schema.events:
        jagged = batch.events[event.name]
        ids = np.array(jagged.values["ids"])
        for column, field in enumerate(event.categorical):
            if field.table_name == table:
                ids[:, column] = rng.integers(0, rows, len(ids))
        events[event.name] = jagged.replace({**jagged.values, "ids": ids})
    return dataclasses.replace(batch, categorical=categorical, events=events)


def make_trainer(dataset: Dataset, rows: int, dim: int, devices: int = 1) -> Trainer:
    """The preset kunlun/small's trainer for the data set with `rows` rows in `TABLE`, cut over `devices`."""
    model = dataclasses.replace(small.CONFIG.model, embedding_dim=dim).build(
        dataset.schema.resized(TABLE, rows),
        base_rate=dataset.p_train,
        rngs=nnx.Rngs(params=jax.random.key(0)),
    )
    mesh = make_mesh(MeshConfig(data=devices))
    return Trainer(model, small.CONFIG.optimizer, steps=1000, log_every=20, seed=0, mesh=mesh)


class PeakMemory:
    """Peak of this process's memory in a with block, and its growth there, bytes; None where Linux does not tell."""

    peak: int | None = None
    growth: int | None = None

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        self._tells = os.access("/proc/self/clear_refs", os.W_OK)
        if self._tells:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is held now
            self._before = _status("VmRSS")
        return self

    def __exit__(self, *_) -> None:
        if self._tells:
            self.peak = _status("VmHWM")
            self.growth = max(self.peak - self._before, 0)


def _status(field: str) -> int:
    """A size of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


class Subject(StepTimes):
    """One table size: its compiled step, its state and its batches."""

    def __init__(self, dataset: Dataset, batches: list[Batch], rows: int, dim: int, devices: int):
        self.rows = rows
        self.trainer = make_trainer(dataset, rows, dim, devices)
        schema = self.trainer.schema
        self.batches = [
            self.trainer.put(with_random_ids(schema, batch, TABLE, rows, seed)) for seed, batch in enumerate(batches)
        ]
        began = time.perf_counter()
        with PeakMemory() as memory:
            state = jax.block_until_ready(self.trainer.init())
        self.init_seconds, self.init_peak = time.perf_counter() - began, memory.peak
        super().__init__(self.trainer, state, self.batches)

    def result(self) -> dict[str, Any]:
        """Numbers of this size."""
        memory = self.compiled.memory_analysis()
        assert memory is not None, "this backend does not tell the memory of a compiled step"
        return {
            "rows": self.rows,
            "table_bytes": self.state.tables[TABLE].nbytes,
            "step_seconds": statistics.median(self.seconds),
            "step_seconds_all": self.seconds,
            "temporary_bytes": memory.temp_size_in_bytes,
            "aliased_bytes": memory.alias_size_in_bytes,
            "peak_growth_bytes": self.peak_growth,
            "init_seconds": self.init_seconds,
            "init_peak_bytes": self.init_peak,
        }

    def warm_up(self) -> None:
        """First steps, by which the memory of a step is measured: what the process grows by while it runs them."""
        with PeakMemory() as memory:
            self.run(len(self.batches))
        self.peak_growth = memory.growth


def _checksums(state: TrainState) -> list[int]:
    """The CRC-32 of each device's part of every leaf, where it lies."""
    parts = [shard.data for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards]
    return [zlib.crc32(np.ascontiguousarray(part)) for part in parts]


def save_and_restore(subject: Subject) -> dict[str, Any]:
    """Times and peak memory of a checkpoint of a size's state and of its restore; its state is given up.

    Raises:
      AssertionError: the step after the restore has not the state, bit for bit, that the one after the save had.
    """

    def next_step(state: TrainState) -> list[int]:
        state, _ = subject.compiled(state, subject.batches[0])
        return _checksums(state)

    with tempfile.TemporaryDirectory(prefix="table_scaling") as folder:
        began = time.perf_counter()
        with PeakMemory() as saving:
            checkpoints = Checkpoints(Path(folder) / "checkpoints")
            checkpoints.save(1, subject.state, {})
            blocked = time.perf_counter() - began
            checkpoints.close()
        saved = time.perf_counter() - began
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        expected = next_step(subject.state)
        del subject.state
        began = time.perf_counter()
        with PeakMemory() as restoring:
            checkpoints = Checkpoints(Path(folder) / "checkpoints")
            state, _ = checkpoints.restore(1, subject.trainer.abstract_state())
            jax.block_until_ready(state)
            checkpoints.close()
        restored = time.perf_counter() - began
        assert next_step(state) == expected, "the restored state does not go on as the saved one did"
    return {
        "rows": subject.rows,
        "checkpoint_bytes": size,
        "save_seconds": saved,
        "save_blocked_seconds": blocked,
        "save_peak_bytes": saving.peak,
        "restore_seconds": restored,
        "restore_peak_bytes": restoring.peak,
    }


def measure(args: Arguments) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Numbers of each size, with ratios to the smallest, and those of the checkpoint, if one is asked for."""
    config = dataclasses.replace(small.WORLD, train_rows=args.train_rows, valid_rows=0, test_rows=0)
    dataset = open_dataset(dataclasses.replace(small.CONFIG.data, options=config))
    loading = small.CONFIG.loader
    capacity = capacities(dataset, ["train"], loading, share_count=args.devices)
    with make_loader(dataset, "train", loading, capacity=capacity, share_count=args.devices) as loader:
        batches = [batch for (batch, _), _ in zip(loader, range(args.steps), strict=False)]
    subjects = []
    for rows in args.rows:
        subjects.append(Subject(dataset, batches, rows, args.dim, args.devices))
        subjects[-1].warm_up()
        print(f"{rows:,} rows: made in {subjects[-1].init_seconds:.1f} s", file=sys.stderr)
    for _ in range(args.rounds):
        for subject in subjects:
            subject.seconds.append(subject.run(len(batches)))
    results = [subject.result() for subject in subjects]
    for result in results:
        # A round's sizes ran one after the other, so a busy moment of the machine cancels in their ratio.
        rounds = zip(result["step_seconds_all"], results[0]["step_seconds_all"], strict=True)
        result["time_ratio"] = statistics.median(mine / smallest for mine, smallest in rounds)
        result["temporary_ratio"] = result["temporary_bytes"] / results[0]["temporary_bytes"]
    if not args.restore:
        return results, None
    largest = subjects.pop()
    subjects.clear()
    return results, save_and_restore(largest)


def table(results: list[dict[str, Any]]) -> str:
    """The numbers for a person."""
    lines = [f"{'rows':>11} {'table':>9} {'step':>9} {'ratio':>6} {'temporary':>10} {'ratio':>6} {'peak growth':>12}"]
    for r in results:
        growth = "unknown" if r["peak_growth_bytes"] is None else f"{r['peak_growth_bytes'] / 1e6:,.0f} MB"
        lines.append(
            f"{r['rows']:11,} {r['table_bytes'] / 1e6:6,.0f} MB {r['step_seconds'] * 1e3:6.1f} ms "
            f"{r['time_ratio']:6.2f} {r['temporary_bytes'] / 1e6:7,.0f} MB {r['temporary_ratio']:6.2f} {growth:>12}"
        )
    return "\n".join(lines)


def restore_line(checkpoint: dict[str, Any]) -> str:
    """What the checkpoint took, as a sentence for a person."""
    peaks = (checkpoint["save_peak_bytes"], checkpoint["restore_peak_bytes"])
    save, restore = ("unknown" if peak is None else f"{peak / 1e9:.1f} GB" for peak in peaks)
    return (
        f"Checkpoint of {checkpoint['rows']:,} rows, {checkpoint['checkpoint_bytes'] / 1e9:.1f} GB: saved in "
        f"{checkpoint['save_seconds']:.0f} s (the run waits {checkpoint['save_blocked_seconds']:.0f} s) at a peak of "
        f"{save} of memory, restored in {checkpoint['restore_seconds']:.0f} s at {restore}; the next step is the same "
        "bit for bit."
    )


def markdown(content: dict[str, Any]) -> str:
    """Ratios to the smallest table, and what the checkpoint took, of a results file."""
    results = content["sizes"]
    heads = " | ".join(f"{r['rows']:.0e}".replace("e+0", "e") for r in results)
    lines = [f"| rows of the table | {heads} |", "|---" * (len(results) + 1) + "|"]
    lines.append("| time of a step, relative | " + " | ".join(f"{r['time_ratio']:.2f}" for r in results) + " |")
    memory = " | ".join(f"{r['temporary_ratio']:.2f}" for r in results)
    lines.append(f"| compiled temporary memory, relative | {memory} |")
    return "\n".join([*lines, *(["", restore_line(content["checkpoint"])] if "checkpoint" in content else [])])


def picture(results: list[dict[str, Any]], path: Path) -> None:
    """Time and memory of a step over rows."""
    figure = Figure(figsize=(8, 3.2), dpi=140, layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = [r["rows"] for r in results]
    left.plot(rows, [r["time_ratio"] for r in results], "o-", color="#2f6fb0")
    left.set_ylabel("time of a step, relative")
    right.plot(rows, [r["table_bytes"] / 1e6 for r in results], "s--", color="#888888", label="the table itself")
    right.plot(rows, [r["temporary_bytes"] / 1e6 for r in results], "o-", color="#c8553d", label="temporary of a step")
    right.set_yscale("log")
    right.set_ylabel("MB")
    right.legend(frameon=False, fontsize=8)
    left.set_ylim(0, 1.2 * max(r["time_ratio"] for r in results))
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("rows of the table")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> int:
    """Parses flags, measures, prints and writes; returns the exit code."""
    args = tyro.cli(Arguments, args=arguments, prog="experiments.table_scaling", description=__doc__)
    jax.config.update("jax_num_cpu_devices", args.devices)
    load = os.getloadavg()
    results, checkpoint = measure(args)
    print(table(results))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment(), "load_average": load, "dim": args.dim, "sizes": results}
    if checkpoint is not None:
        content["checkpoint"] = checkpoint
        print(restore_line(checkpoint))
    write_atomic(args.out, json.dumps(content, indent=2) + "\n")
    picture(results, args.out.with_suffix(".png"))
    print(f"written to {args.out}")
    flat = all(r["time_ratio"] <= LIMIT and r["temporary_ratio"] <= LIMIT for r in results)
    if not flat:
        print(f"error: a size costs more than {LIMIT} times the smallest", file=sys.stderr)
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
