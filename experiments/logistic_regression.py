"""Logistic regression on the same features: ``python -m experiments.logistic_regression --data.root FOLDER``.

The baseline that every deep model must beat. Its inputs are what Kunlun reads: one column per id of every categorical
and multi-valued context feature, dense features scaled by the training split, and (unless --no-history) for each event
type and field log(1 + how often the id occurs in the history). C is chosen on the validation split only. Needs the
extra "dev" (scikit-learn). About 2 minutes on KuaiRand on two CPU cores; result in LOG.md.
"""

import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import tyro
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from kunlun_jax.data.dataset import Dataset, Ragged, Rows, group_numbers
from kunlun_jax.data.open import DataConfig, open_dataset
from kunlun_jax.data.pack import map_ids
from kunlun_jax.data.schema import Categorical
from kunlun_jax.progress import ProgressBar
from kunlun_jax.provenance import environment
from kunlun_jax.training.config import TrainConfig
from kunlun_jax.training.metrics import evaluate_predictions
from kunlun_jax.training.run_directory import write_atomic

CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of the baseline."""

    data: DataConfig = DataConfig()
    """The data set."""
    c: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
    """Inverse strengths of the L2 penalty to choose from, on the validation split."""
    history: bool = True
    """Whether the ids of the histories are inputs."""
    max_events: int = 100
    """Newest events of each history that count."""
    splits: tuple[str, ...] = ("valid", "test")
    """Splits to report."""
    max_iterations: int = 300
    """Bound on the solver's iterations."""
    out: Path | None = None
    """JSON file for the result."""


def one_hot(ids: np.ndarray, rows: np.ndarray, count: int, feature: Categorical) -> sp.csr_matrix:
    """How often each id of a feature stands in each of `count` rows; an id beyond the vocabulary has a column too."""
    mapped, _ = map_ids(ids[:, None], (feature,))
    width = feature.size + (feature.overflow == "oov")
    return sp.csr_matrix((np.ones(len(ids), np.float32), (rows, mapped[:, 0])), shape=(count, width))


def ragged_rows(splits: np.ndarray) -> np.ndarray:
    """The row of each item of a ragged column."""
    return np.repeat(np.arange(len(splits) - 1), np.diff(splits))


def sparse_columns(dataset: Dataset, rows: Rows, history: bool) -> sp.csr_matrix:
    """All id features of some rows, side by side."""
    schema, count = dataset.schema, len(rows.row)
    blocks = [
        one_hot(rows.categorical[:, column], np.arange(count), count, feature)
        for column, feature in enumerate(schema.categorical)
    ]
    for feature in schema.multi_valued:
        items: Ragged = rows.multi_valued[feature.name]
        blocks.append(one_hot(items.values, ragged_rows(items.splits), count, feature))
    for event in schema.events if history else ():
        events = rows.events[event.name]
        owner = ragged_rows(events.splits)
        for column, field in enumerate(event.categorical):
            times = one_hot(events.ids[:, column], owner, count, field)
            times.sum_duplicates()
            times.data = np.log1p(times.data)
            blocks.append(times)
    return sp.csr_matrix(sp.hstack(blocks))


def matrix(
    dataset: Dataset, split: str, args: Arguments
) -> tuple[sp.csr_matrix, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Id columns and dense columns of a split, and its labels, NaN where there is none, and weights."""
    most = {event.name: args.max_events for event in dataset.schema.events}
    span = dataset.split(split)
    sparse, dense, labels, weights = [], [], [], []
    for start in ProgressBar(range(span.start, span.stop, CHUNK), desc=f"read {split}", unit="chunk", leave=False):
        rows = dataset.source.rows(np.arange(start, min(start + CHUNK, span.stop)), most)
        sparse.append(sparse_columns(dataset, rows, args.history))
        dense.append(rows.dense)
        labels.append(rows.labels[:, 0])
        weights.append(rows.weights)
    return sp.csr_matrix(sp.vstack(sparse)), np.concatenate(dense), (np.concatenate(labels), np.concatenate(weights))


def run(args: Arguments) -> dict[str, Any]:
    """Fits one model per C and reports the one that is best on "valid", and which fits were cut off."""
    dataset = open_dataset(args.data)
    splits = dict.fromkeys(("train", "valid", *args.splits))
    scaler = StandardScaler()
    data = {}
    for split in splits:
        sparse, dense, target = matrix(dataset, split, args)
        if dense.shape[1]:
            scaled = np.asarray(scaler.fit_transform(dense) if split == "train" else scaler.transform(dense))
            sparse = sp.csr_matrix(sp.hstack([sparse, sp.csr_matrix(scaled.astype(np.float32))]))
        data[split] = (sparse, *target)

    def measure(model: LogisticRegression, split: str) -> dict[str, Any]:
        x, labels, weights = data[split]
        there = ~np.isnan(labels)
        groups = group_numbers(dataset.source, np.flatnonzero(there) + dataset.split(split).start)
        logits = model.decision_function(x[there])
        return evaluate_predictions(labels[there], logits, weights[there], groups, p_train=dataset.p_train[0])

    best, tried, short = None, {}, []
    for c in ProgressBar(args.c, desc="fit", unit="C"):
        x, labels, weights = data["train"]
        model = LogisticRegression(C=c, max_iter=args.max_iterations, solver="lbfgs")
        there = ~np.isnan(labels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x[there], labels[there], sample_weight=weights[there])
        if model.n_iter_[0] >= args.max_iterations:
            short.append(str(c))
            print(f"C {c}: not converged after {args.max_iterations} iterations (--max-iterations)", file=sys.stderr)
        tried[c] = measure(model, "valid")["logloss"]
        if best is None or tried[c] < tried[best[0]]:
            best = (c, model)
    assert best is not None
    return {
        "c": best[0],
        "valid_logloss_by_c": {str(c): value for c, value in tried.items()},
        "not_converged": short,
        "columns": data["train"][0].shape[1],
        "splits": {split: measure(best[1], split) for split in args.splits},
        "environment": environment(),
    }


def as_row(config: TrainConfig, seed: int) -> dict[str, Any]:
    """The regression on the data, histories and splits of a training config, as a row of `experiments.compare`.

    It comes out the same for every seed.
    """
    del seed
    args = Arguments(data=config.data, max_events=config.loader.max_events, splits=config.run.eval_splits)
    result = run(args)
    del result["environment"]
    return result


def main(arguments: list[str] | None = None) -> int:
    """Parses flags, fits, prints and writes; returns the exit code."""
    args = tyro.cli(Arguments, args=arguments, prog="experiments.logistic_regression", description=__doc__)
    try:
        result = run(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = json.dumps(result, indent=2)
    print(text)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.out, text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
