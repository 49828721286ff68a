"""Does reading data stay bounded as it grows? ``python -m experiments.data_scaling``.

For each number of examples a data set with five events an example is written, then opened by processes of their own:
first converted, then opened again and read in batches, in the log's order and in a global shuffle. A last one has a
random prediction for every example and does what an evaluation does with them: metrics, with gAUC over users whose
keys are text, and the CSV of `experiments.evaluate`. Shown are seconds, and memory that is the process's own (RssAnon:
what is mapped from files the system takes back when it needs it), less that of a process that has only imported the
library; of an evaluation less the predictions themselves, 20 bytes an example. Five minutes on two CPU cores for the
default sizes, and some gigabytes of disk; a table, ``data_scaling.json`` and ``data_scaling.png`` at the end. Stored
sizes are not run again. The table's last row is no measurement: 10^9 examples, if everything grows with each example as
between the two largest sizes.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from experiments.evaluate import write_predictions
from kunlun_jax.data.pack import Counts
from kunlun_jax.data.parquet.source import open_dataset
from kunlun_jax.data.pipeline import LoaderConfig, make_loader
from kunlun_jax.data.schema import Categorical, EventType, Schema
from kunlun_jax.provenance import environment
from kunlun_jax.training.evaluate import Predictions, metrics_of
from kunlun_jax.training.run_directory import write_atomic

EVENTS, PER_USER, PART, BATCHES, START = 5, 10, 1_000_000, 200, 1_600_000_000_000
"""Events an example, examples a user, rows a file, batches that are read, and the first request's time."""
EXTRAPOLATED = 10**9
"""Examples of the table's last row."""
ITEM = Categorical("item", 100_000, "hash", "item")
SCHEMA = Schema(
    "growing",
    (Categorical("user", 1_000_000, "hash"), ITEM),
    dense=("price",),
    events=(EventType("click", (ITEM,)),),
    keys=("request", "user_name"),
    group="user_name",
)
COLUMNS = {
    "convert": "conversion, s",
    "convert_mb": "its memory, MB",
    "first_batch": "start to first batch, s",
    "read_mb": "reading, MB",
    "shuffled_first_batch": "shuffled, s",
    "shuffled_mb": "shuffled, MB",
    "metrics": "metrics, s",
    "metrics_mb": "metrics, MB",
    "csv": "CSV, s",
    "csv_mb": "CSV, MB",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Flags."""

    examples: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    """Sizes."""
    out: Path = Path("experiments/results/cpu/data_scaling.json")
    """Where the figures go; the picture lies beside."""
    work: Path | None = None
    """Folder for the data, some gigabytes, removed at the end; default: the system's for temporary files."""


def write_data(root: Path, examples: int) -> None:
    """A data set of random content; a user's requests and events are spread over the whole time."""
    (root / "schema.json").parent.mkdir(parents=True)
    (root / "schema.json").write_text(SCHEMA.to_json())
    users = max(1, examples // PER_USER)
    for part, first in enumerate(range(0, examples, PART)):
        rng = np.random.default_rng(part)
        rows = np.arange(first, min(first + PART, examples))
        user = rng.integers(0, users, len(rows))
        columns = {
            "request_time_ms": START + 1000 * rows,
            "history_key": user,
            "user": user,
            "item": rng.integers(0, ITEM.size, len(rows)),
            "price": rng.random(len(rows)),
            "label": rng.integers(0, 2, len(rows)),
            "request": rows,
            "user_name": [f"user-{key}" for key in user.tolist()],
        }
        _write(root / "examples" / "train", part, columns)
        # The events of a run of users; every user has as many.
        keys = np.arange(first * users // examples, (first + len(rows)) * users // examples)
        per_user = EVENTS * PER_USER
        times = START + np.sort(rng.integers(0, 1000 * examples, (len(keys), per_user)), axis=1)
        columns = {"history_key": np.repeat(keys, per_user), "time_ms": times.ravel()}
        _write(root / "events" / "click", part, columns | {"item": rng.integers(0, ITEM.size, times.size)})


def _write(folder: Path, part: int, columns: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / f"part-{part:05}.parquet", row_group_size=1 << 17)


def own_mb() -> float:
    """Memory of this process that is no file's, in MB."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


class Peak:
    """The most that `own_mb` was while it was open, less what it was at its start; looked at 50 times a second."""

    def __enter__(self) -> "Peak":
        self._before, self.mb, self._done = own_mb(), 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._done.wait(0.02):
            self.mb = max(self.mb, own_mb() - self._before)

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()


def measure(root: Path, cache: Path, what: str) -> dict[str, float]:
    """What one process sees: ``convert``, ``read``, ``shuffled`` or ``evaluate``."""
    if what == "evaluate":
        return measure_evaluation(root, cache)
    start = time.perf_counter()
    with Peak() as peak:
        dataset = open_dataset(root, cache)
        if what != "convert":
            config = LoaderConfig(batch_size=256, shuffle="global" if what == "shuffled" else "none")
            with make_loader(dataset, "train", config) as loader:
                next(loader)
                first = time.perf_counter() - start
                for _ in zip(range(BATCHES), loader, strict=False):
                    pass
    if what == "convert":
        return {"convert": time.perf_counter() - start, "convert_mb": peak.mb}
    prefix = "" if what == "read" else "shuffled_"
    return {f"{prefix}first_batch": first, "read_mb" if what == "read" else "shuffled_mb": peak.mb}


def measure_evaluation(root: Path, cache: Path) -> dict[str, float]:
    """What becomes of predictions."""
    dataset = open_dataset(root, cache)
    rows = np.asarray(dataset.split("train"))
    none = {event.name: 0 for event in dataset.schema.events}
    labels = np.concatenate(
        [dataset.source.rows(part, none).labels for part in np.array_split(rows, len(rows) // PART + 1)]
    )
    logits = np.random.default_rng(0).normal(size=labels.shape).astype(np.float32)
    predictions = Predictions(rows, logits, labels, np.ones(len(rows), np.float32), Counts())
    with Peak() as metrics:
        start = time.perf_counter()
        metrics_of(dataset, predictions)
        seconds = time.perf_counter() - start
    with Peak() as written:
        start = time.perf_counter()
        write_predictions(root.with_name("predictions.csv"), dataset, predictions)
    return {
        "metrics": seconds,
        "metrics_mb": metrics.mb,
        "csv": time.perf_counter() - start,
        "csv_mb": written.mb,
    }


def row(examples: int, work: Path | None) -> dict[str, Any]:
    """Writes the data of a size and measures it, each thing in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="kunlun_data_scaling_", dir=work) as name:
        folder = Path(name)
        write_data(folder / "data", examples)
        found: dict[str, Any] = {"examples": examples, "events": EVENTS * examples}
        for what in ("convert", "read", "shuffled", "evaluate"):
            command = [sys.executable, "-m", "experiments.data_scaling", "measure", what, str(folder)]
            found |= json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def extrapolated(rows: list[dict[str, Any]], examples: int) -> dict[str, Any]:
    """What a size would need if everything grew with each example as between the last two of `rows`, or stayed."""
    before, last = rows[-2:]
    more = (examples - last["examples"]) / (last["examples"] - before["examples"])
    return {"examples": examples} | {
        column: last[column] + more * max(0.0, last[column] - before[column]) for column in COLUMNS
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of docs; the last row is extrapolated, where there are two sizes."""
    shown = [(f"{r['examples']:,}", r) for r in rows]
    if len(rows) > 1:
        shown.append((f"{EXTRAPOLATED:,} (extrapolated)", extrapolated(rows, EXTRAPOLATED)))
    lines = [f"| examples | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 1) + "|"]
    return "\n".join(
        lines + [f"| {name} | {' | '.join(f'{r[column]:,.1f}' for column in COLUMNS)} |" for name, r in shown]
    )


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Seconds and memory over examples, both axes logarithmic."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    examples = [r["examples"] for r in rows]
    for column, label in COLUMNS.items():
        (right if column.endswith("_mb") else left).plot(examples, [r[column] for r in rows], "o-", label=label)
    for axis, name in ((left, "seconds"), (right, "MB of the process's own")):
        axis.set(xscale="log", yscale="log", xlabel="examples", ylabel=name)
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(config: Config) -> int:
    """Measures the sizes that are not stored yet; prints, stores and draws all."""
    stored = json.loads(config.out.read_text())["rows"] if config.out.exists() else []
    for examples in config.examples:
        if examples not in [r["examples"] for r in stored]:
            stored = sorted([*stored, row(examples, config.work) | {"environment": environment()}], key=_examples)
            config.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(config.out, json.dumps({"rows": stored}, indent=2) + "\n")
            print(markdown(stored), flush=True)
    picture(stored, config.out.with_suffix(".png"))
    print(f"rows in {config.out}, picture in {config.out.with_suffix('.png')}")
    return 0


def _examples(stored: dict[str, Any]) -> int:
    return stored["examples"]


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        folder = Path(sys.argv[3])
        print(json.dumps(measure(folder / "data", folder / "cache", sys.argv[2])))
    else:
        sys.exit(main(tyro.cli(Config, description=__doc__, prog="python -m experiments.data_scaling")))
