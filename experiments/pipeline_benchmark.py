"""Examples/s of the data pipeline alone: ``python -m experiments.pipeline_benchmark``.

Writes Parquet data sets of random content to a temporary folder, opens them, and counts the examples that the loader
delivers: on one core (packing in a thread of the process, pinned), and on two with two threads, one worker process and
two of them. "short" has about 10 events of each of 3 types, "small" the preset small's batch and cut, "large" that of
the preset large: 1000 events of each of 3 types, 1152 examples a batch. Takes about 3 minutes and 1 GB of disk; the
table goes to the terminal, everything to ``experiments/results/cpu/pipeline.json``. Examples per second of CPU time are
printed as well: they hold on a machine that is busy with other work, whose load average the file records.
"""

import dataclasses
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from kunlun_jax.data.dataset import Dataset
from kunlun_jax.data.parquet.source import open_dataset
from kunlun_jax.data.pipeline import LoaderConfig, capacities, make_loader
from kunlun_jax.data.schema import Categorical, EventType, Schema
from kunlun_jax.provenance import environment

TYPES = ("impression", "click", "purchase")
FIELDS = ("item", "author", "category")
CONTEXT = 16  # context features
PLACES = ((1, 0, 1), (2, 0, 2), (2, 1, 1), (2, 2, 1))  # cores, workers, threads


@dataclasses.dataclass(frozen=True)
class Setting:
    """One kind of data and batch."""

    users: int
    events_per_user: int  # of each type
    spread: bool  # lengths from a geometric distribution, else all the same
    batch_size: int
    max_events: int
    batches: int


SETTINGS = {
    "short": Setting(users=20_000, events_per_user=13, spread=True, batch_size=1024, max_events=1000, batches=200),
    "small": Setting(users=10_000, events_per_user=100, spread=True, batch_size=256, max_events=200, batches=200),
    "large": Setting(users=1_500, events_per_user=2_200, spread=False, batch_size=1152, max_events=1000, batches=16),
}


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """Flags of the benchmark."""

    settings: tuple[str, ...] = tuple(SETTINGS)
    """Kinds of data: short, small, large."""
    repeats: int = 5
    """Times each figure is taken; the median is reported."""
    output: Path = Path("experiments/results/cpu/pipeline.json")
    """Where the figures go."""


def write_data(root: Path, setting: Setting, seed: int = 0) -> None:
    """A prepared data set: events over 10 days, examples in the last 5 of them, all from `seed`."""
    rng = np.random.default_rng(seed)
    fields = tuple(Categorical(name, size) for name, size in zip(FIELDS, (100_000, 10_000, 100), strict=True))
    context = tuple(Categorical(f"context_{i}", 1000) for i in range(CONTEXT))
    events = tuple(EventType(name, fields, ("value",)) for name in TYPES)
    schema = Schema("benchmark", context, events=events, dense=("rate",), tasks=("click",), allow=("relative_times",))
    root.mkdir(parents=True)
    (root / "schema.json").write_text(schema.to_json())
    day = 86_400_000
    for name in TYPES:
        lengths = np.full(setting.users, setting.events_per_user)
        if setting.spread:
            lengths = rng.geometric(1 / setting.events_per_user, setting.users)
        key = np.repeat(np.arange(setting.users), lengths)
        time_ms = rng.integers(0, 10 * day, len(key))
        order = np.lexsort((time_ms, key))
        columns = {"history_key": key, "time_ms": time_ms[order]}
        columns |= {field.name: rng.integers(0, field.size + field.size // 50, len(key)) for field in fields}
        _write(root / "events" / name, columns | {"value": rng.random(len(key), np.float32)})
    rows = setting.batch_size * setting.batches
    columns = {feature.name: rng.integers(0, feature.size, rows) for feature in context}
    columns |= {"rate": rng.random(rows, np.float32), "click": rng.integers(0, 2, rows)}
    columns |= {"request_time_ms": np.sort(rng.integers(5 * day, 10 * day, rows))}
    _write(root / "examples" / "train", columns | {"history_key": rng.integers(0, setting.users, rows)})


def _write(folder: Path, columns: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "part-0.parquet", row_group_size=1 << 20)


def measure(
    dataset: Dataset, setting: Setting, workers: int, threads: int, repeats: int
) -> tuple[list[float], list[float]]:
    """Examples per second, and per second of this process's CPU time, of each repeat.

    Both count from the moment that the first batches of all workers have come.
    """
    config = LoaderConfig(
        batch_size=setting.batch_size, max_events=setting.max_events, workers=workers, threads=threads
    )
    capacity = capacities(dataset, ["train"], config)
    per_second, per_cpu_second = [], []
    for _ in range(repeats):
        with make_loader(dataset, "train", config, capacity=capacity) as loader:
            # Start-up and what was prefetched meanwhile are not counted.
            for _ in range(max(workers, threads) * (config.prefetch + 1)):
                next(loader)
            start, cpu_start = time.perf_counter(), time.process_time()
            examples = sum(setting.batch_size for _ in loader)
            per_second.append(examples / (time.perf_counter() - start))
            per_cpu_second.append(examples / (time.process_time() - cpu_start))
    return per_second, per_cpu_second


def main(config: BenchmarkConfig) -> None:
    """Measures, prints and writes."""
    all_cores = sorted(os.sched_getaffinity(0))
    results = []
    heading = f"{'data':8} {'batch':>6} {'events/example':>15} {'cores':>6} {'workers':>8} {'threads':>8}"
    print(f"{heading} {'examples/s':>11} {'per CPU s':>10} {'MB/s':>7}")
    for name in config.settings:
        setting = SETTINGS[name]
        with tempfile.TemporaryDirectory(prefix="kunlun_pipeline_") as folder:
            write_data(Path(folder) / "data", setting)
            start = time.perf_counter()
            dataset = open_dataset(Path(folder) / "data", Path(folder) / "cache")
            opening = time.perf_counter() - start
            index = np.arange(len(dataset.source))
            lengths = [np.minimum(dataset.source.history_lengths(index, t), setting.max_events) for t in TYPES]
            events = float(np.mean(sum(lengths)))
            for cores, workers, threads in PLACES:
                if cores > len(all_cores):
                    print(f"{name:8} needs {cores} cores for {workers} workers; there is {len(all_cores)}")
                    continue
                os.sched_setaffinity(0, all_cores[:cores])
                figures, cpu_figures = measure(dataset, setting, workers, threads, config.repeats)
                os.sched_setaffinity(0, all_cores)
                median = statistics.median(figures)
                # Of worker processes' time nothing is known here.
                per_core = statistics.median(cpu_figures) if not workers else None
                # What a batch holds of events: ids and one dense value, and the age, 4 bytes each.
                megabytes = median * events * 4 * (len(FIELDS) + 2) / 1e6
                per_core_text = "-" if per_core is None else f"{per_core:,.0f}"
                print(
                    f"{name:8} {setting.batch_size:6} {events:15.0f} {cores:6} {workers:8} {threads:8} "
                    f"{median:11,.0f} {per_core_text:>10} {megabytes:7,.0f}"
                )
                results.append(
                    {
                        "data": name,
                        **dataclasses.asdict(setting),
                        "events_per_example": events,
                        "cores": cores,
                        "workers": workers,
                        "threads": threads,
                        "examples_per_second": median,
                        "examples_per_second_repeats": figures,
                        "examples_per_cpu_second": per_core,
                        "convert_seconds": opening,
                    }
                )
    content = {"environment": environment(), "load_average": os.getloadavg(), "results": results}
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(json.dumps(content, indent=2) + "\n")
    print(f"written to {config.output}")


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
