"""Evaluates a finished or interrupted run: ``python -m experiments.evaluate --run.dir DIR --split test``.

Rebuilds data and model from the run directory, reads its newest checkpoint and prints the metrics of a split;
``--predictions out.csv`` writes one row per example: the data set's key columns, and the label and the predicted
probability of each task.
"""

import csv
import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np
import tyro

from experiments.compilation import keep_compiled
from kunlun_jax.data.dataset import Dataset
from kunlun_jax.data.open import open_dataset
from kunlun_jax.nn.table_rows import dealt
from kunlun_jax.parallel import MeshConfig
from kunlun_jax.serialization import from_json
from kunlun_jax.training.checkpoint import Checkpoints
from kunlun_jax.training.config import TrainConfig
from kunlun_jax.training.evaluate import Predictions, metrics_of
from kunlun_jax.training.run import Run, prepare
from kunlun_jax.training.run_directory import read_json, replacing


@dataclasses.dataclass(frozen=True)
class RunArguments:
    """Which run."""

    dir: Path
    """Run directory of experiments.train."""


@dataclasses.dataclass(frozen=True)
class DataArguments:
    """Where the data is now, if not where the run found it."""

    root: Path | None = None
    """Folder of the data set; default: the one in config.json."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of the evaluation."""

    run: RunArguments
    """Which run."""
    data: DataArguments = DataArguments()
    """Where the data is."""
    split: str = "test"
    """Split to evaluate."""
    predictions: Path | None = None
    """CSV file to write a row per example to."""
    progress: bool = True
    """Show a progress bar."""


def open_run(directory: Path, root: Path | None, split: str, progress: bool) -> Run:
    """The run of a directory, on the data it was trained on.

    Raises:
      ValueError: no run there, or the data is not what it was trained on.
      KeyError: the data has no such split.
    """
    stored_path = directory / "config.json"
    if not stored_path.exists():
        raise ValueError(f"{stored_path}: no such file; --run.dir must name a run directory of experiments.train")
    stored = read_json(stored_path)
    config = from_json(TrainConfig, stored["config"])
    data = dataclasses.replace(config.data, root=root) if root is not None else config.data
    dataset = open_dataset(data)
    # Before anything is built on it: a model may not even fit other data.
    if dataset.fingerprint != stored["data"]["fingerprint"]:
        raise ValueError(
            f"{stored_path}: the run was trained on data {stored['data']['fingerprint']}, "
            f"but the data there now is {dataset.fingerprint}"
        )
    if stored.get("dealt_tables", []) != dealt(dataset.schema):
        raise ValueError(f"{stored_path}: the run stored the rows of its large tables in another order; train it anew")
    dataset.split(split)
    run = dataclasses.replace(config.run, progress=progress)
    # On one device, however many it was trained on: a checkpoint is the same for all.
    return prepare(dataclasses.replace(config, data=data, run=run, mesh=MeshConfig()), dataset)


def newest_predictions(directory: Path, root: Path | None, split: str, progress: bool) -> tuple[Run, int, Predictions]:
    """The run of a directory, the step of its newest checkpoint, and what that predicts for a split.

    Raises:
      ValueError, KeyError: as `open_run`; or there is no checkpoint.
    """
    run = open_run(directory, root, split, progress)
    checkpoints = Checkpoints(directory / "checkpoints", writable=False)
    try:
        step = checkpoints.latest()
        if step is None:
            raise ValueError(f"{directory / 'checkpoints'} holds no finished checkpoint; train first")
        state, _ = checkpoints.restore(step, run.trainer.abstract_state())
    finally:
        checkpoints.close()
    return run, step, run.predict(state, split)


def write_predictions(path: Path, dataset: Dataset, predictions: Predictions, chunk: int = 65536) -> None:
    """A CSV with the data set's keys, then ``label`` and ``prediction`` (per task where there are several).

    Written in chunks of rows: keys of all of them at once would take more room than all else.
    A file that is there already stays as it was until all rows are written; what is no file, such as a pipe, gets each
    chunk at once.

    Raises:
      OSError: it cannot be written; then nothing is left of it.
    """
    tasks, keys = dataset.schema.tasks, dataset.schema.keys
    suffixes = [f"_{task}" for task in tasks] if len(tasks) > 1 else [""]
    names = [f"key_{name}" if name in ("label", "prediction") else name for name in keys]
    names += [f"{name}{suffix}" for suffix in suffixes for name in ("label", "prediction")]
    is_file = path.is_file() or not path.exists()
    with replacing(path.resolve(), newline="") if is_file else path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for start in range(0, len(predictions.row), chunk):
            part = slice(start, start + chunk)
            of_key = dataset.source.keys(predictions.row[part])
            columns = [of_key[name] for name in keys]
            probability = 1.0 / (1.0 + np.exp(-predictions.logits[part].astype(np.float64)))
            for index in range(len(tasks)):
                label = predictions.labels[part, index]
                nothing = np.full(len(label), None)  # an empty cell
                columns += [np.where(np.isnan(label), nothing, label), probability[:, index]]
            writer.writerows(zip(*(column.tolist() for column in columns), strict=True))


def main(arguments: list[str] | None = None) -> int:
    """Parses flags, evaluates, prints and writes; returns the exit code."""
    args = tyro.cli(Arguments, args=arguments, prog="experiments.evaluate", description=__doc__)
    keep_compiled(None)
    try:
        path = args.predictions  # looked at before the evaluation, which may take long
        if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK)):
            raise ValueError(f"{path}: no file can be written there; make its folder, or name another")
        run, step, predictions = newest_predictions(args.run.dir, args.data.root, args.split, args.progress)
        metrics = metrics_of(run.dataset, predictions)
    except (ValueError, KeyError, OSError) as error:
        # A KeyError as text stands in quotes.
        print(f"error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 2
    metrics = {"split": args.split, "step": step, **metrics, **predictions.counts.flat()}
    print(json.dumps(metrics, indent=2, allow_nan=False))
    if args.predictions is not None:
        try:
            write_predictions(args.predictions, run.dataset, predictions)
        except OSError as error:
            print(f"error: {args.predictions} is not written: {error}", file=sys.stderr)
            return 2
        print(f"{len(predictions.row):,} predictions in {args.predictions}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
