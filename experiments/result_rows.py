"""Rows of results: one measurement each, in a JSON file that several runs may add to.

A row says what it is of, what was found, its seconds, and the environment: command, commit, versions, load of the
machine. It is stored as soon as it is done, and the folder of its training run is kept until then.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from kunlun_jax.data.dataset import Dataset
from kunlun_jax.provenance import environment
from kunlun_jax.training.config import TrainConfig
from kunlun_jax.training.evaluate import NotFinite
from kunlun_jax.training.loop import train
from kunlun_jax.training.run_directory import RunInUse, write_atomic
from kunlun_jax.training.skipped import Diverged

RESULTS = Path(__file__).parent / "results"
KEPT = ("ne", "logloss", "auc", "gauc", "calibration", "rows", "floor")
"""Metrics that a row keeps of a split."""
SIZES = {
    "flops": "flops_per_example",
    "executed": "executed_flops_per_example",
    "bytes": "moved_bytes_per_step",
    "parameters": "parameters",
    "examples/s": "examples_per_second",
}
"""Columns that are a row's size or speed: name -> field of a row. Per example useful forward FLOPs and those that a
training step executes, bytes that it moves for a batch, parameters with tables, and training examples per second on the
machine of that row."""
SPEEDS = ("steps", *SIZES.values(), "mfu")
"""What else a row keeps of a training run."""


def stored(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none where there is no file."""
    return json.loads(path.read_text())["rows"] if path.exists() else []


def store(path: Path, row: dict[str, Any], key_of: Callable[[dict[str, Any]], tuple]) -> None:
    """Puts a row into the file, in place of one with the same key and in the order of keys.

    The file is read again, since another run may have written; one that does so now waits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        rows = [old for old in stored(path) if key_of(old) != key_of(row)] + [row]
        rows.sort(key=key_of)
        write_atomic(path, json.dumps({"rows": rows}, indent=1) + "\n")
    finally:
        os.close(folder)


def measured_in(dirty: bool = False) -> dict[str, Any]:
    """The environment of a measurement that begins, with the load of the machine.

    Raises:
      ValueError: the checkout has changes, unless `dirty`.
    """
    found = environment()
    if not dirty and (found["commit"].endswith("+changes") or found["commit"] == "unknown"):
        raise ValueError(
            f"the commit is {found['commit']}, so the measurement could not be reproduced: commit first, or use --dirty"
        )
    return {**found, "load_average": round(os.getloadavg()[0], 2)}


def trained(config: TrainConfig, path: Path, dataset: Dataset | None = None) -> dict[str, Any]:
    """What a training run in the folder `path` leaves of itself: metrics by split, size and speed.

    Raises:
      KeyboardInterrupt: it was stopped; the same command goes on there.
    """
    result = train(config, path, dataset=dataset)
    if "stopped" in result:
        raise KeyboardInterrupt(f"{result['signal']} at step {result['stopped']}; the same command goes on there")
    return {
        "splits": {s: {k: v for k, v in found.items() if k in KEPT} for s, found in result["splits"].items()},
        **{k: result[k] for k in SPEEDS},
    }


def of_commit(commit: str) -> str:
    """The end of a run folder's name, so that no other code goes on with a run that was cut off."""
    return commit[:10] + "+changes" * commit.endswith("+changes")


def run_folder(row: dict[str, Any], runs: Path, commit: str) -> Path:
    """The folder of a row's run, whose path begins with `runs`; other flags, data or code have another."""
    flags = hashlib.sha256(row["flags"].encode()).hexdigest()[:8]
    name = f"{runs.name}-{row['name']}-{flags}-{row['data'][:20]}-seed{row['seed']}-{of_commit(commit)}"
    return runs.parent / re.sub("[ /,]+", "-", name)


def train_row(row: dict[str, Any], config: TrainConfig, dataset: Dataset, folder: Path) -> dict[str, Any]:
    """`trained` for the row's seed; a run that diverges has no splits, and says in "diverged" what happened."""
    seeded = dataclasses.replace(config, run=dataclasses.replace(config.run, seed=row["seed"]))
    try:
        return trained(seeded, folder, dataset)
    except (Diverged, NotFinite) as error:
        return {"splits": {}, "diverged": str(error)}


def diverged(row: dict[str, Any]) -> bool:
    """Whether the row's run ended without a result."""
    return "diverged" in row


def add(
    path: Path,
    row: dict[str, Any],
    key_of: Callable[[dict[str, Any]], tuple],
    started_in: dict[str, Any],
    measure: Callable[[], dict[str, Any]],
    folder: Path | None = None,
) -> dict[str, Any]:
    """Measures a row, stores it with its seconds and environment, and returns it; one that is stored by now as it is.

    `folder` is that of its run. It goes once the row is stored, and until then keeps the seconds of earlier calls.

    Raises:
      RunInUse: another call is at the run of `folder`.
    """
    began, load = time.monotonic(), round(os.getloadavg()[0], 2)
    with contextlib.ExitStack() as held:
        spent = None if folder is None else held.enter_context(_claimed(folder))
        # Another call may have stored it since this one looked for what is missing.
        if known := next((old for old in stored(path) if key_of(old) == key_of(row)), None):
            found = known
        else:
            before = 0.0 if spent is None else float(spent.read() or 0)
            try:
                found = measure()
            finally:
                seconds = round(before + time.monotonic() - began, 1)
                if spent is not None:
                    spent.truncate(0)
                    spent.write(f"{seconds}\n")
                    spent.flush()
            found = row | found | {"seconds": seconds, "environment": {**started_in, "load_average": load}}
            store(path, found, key_of)
        if folder is not None:
            if folder.exists():
                shutil.rmtree(folder)
            _seconds_of(folder).unlink()
    return found


def _seconds_of(folder: Path) -> Path:
    """The file beside the folder of a run that keeps its seconds."""
    return folder.with_name(f"{folder.name}.seconds")


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[TextIO]:
    """`_seconds_of` the folder, open and locked: no other call is at the run as long as this one is, however it ends.

    Raises:
      RunInUse: another one is.
    """
    path = _seconds_of(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunInUse(f"{folder} is in use by another call; wait until it has ended") from None
            # Whoever had it may have deleted it after it was opened here, and a third may have made another.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.seek(0)
                yield file
                return
