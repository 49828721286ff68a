"""What logistic regression and boosted trees read of a data set, and the regression of `experiments.learns`.

Ids and dense features, and on request the lengths of the histories and the match counts of
`experiments.match_features`. The penalty is chosen on the validation split only. Needs the extra "dev" (scikit-learn).
"""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from experiments.logistic_regression import CHUNK, one_hot, ragged_rows, sparse_columns
from experiments.match_features import history_lengths, match_counts
from kunlun_jax.data.dataset import Dataset
from kunlun_jax.data.pack import map_ids
from kunlun_jax.progress import ProgressBar
from kunlun_jax.training.metrics import log_losses

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Inverse strengths of the L2 penalty of the regression, summed over rows."""
FEW = 255
"""Features of fewer ids are read whatever else is: categorical ones by trees, multi-valued ones as a count of each."""

History = Literal["lengths", "matches"]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """One split, in the forms that the two models read; arrays over rows, but for `sizes`."""

    ids: sp.csr_matrix  # a column per id of every context feature
    categories: np.ndarray  # int32, the id of each categorical feature
    sizes: np.ndarray  # int64, how many ids each of these has
    dense: np.ndarray  # float32, dense features, and a count per id of the multi-valued ones of fewer than `FEW`
    history: dict[History, np.ndarray]  # float32
    labels: np.ndarray
    weights: np.ndarray


def read(
    dataset: Dataset, most: Mapping[str, int], splits: tuple[str, ...] = ("train", "valid", "test")
) -> dict[str, Inputs]:
    """Splits of a data set, histories cut to their newest `most` events."""
    return {split: _read(dataset, split, most) for split in splits}


def _read(dataset: Dataset, split: str, most: Mapping[str, int]) -> Inputs:
    schema, span = dataset.schema, dataset.split(split)
    chunks = []
    for start in ProgressBar(range(span.start, span.stop, CHUNK), desc=f"read {split}", unit="chunk", leave=False):
        rows = dataset.source.rows(np.arange(start, min(start + CHUNK, span.stop)), most)
        dense = [rows.dense]
        for feature in schema.multi_valued:
            if feature.size < FEW:
                items = rows.multi_valued[feature.name]
                dense.append(one_hot(items.values, ragged_rows(items.splits), len(rows.row), feature).toarray())
        chunks.append(
            (
                sparse_columns(dataset, rows, history=False),
                map_ids(rows.categorical, schema.categorical)[0],
                np.concatenate(dense, axis=1),
                history_lengths(schema, rows),
                match_counts(schema, rows),
                rows.labels[:, 0],
                rows.weights,
            )
        )
    ids, *rest = zip(*chunks, strict=True)
    categories, dense, lengths, matches, labels, weights = (np.concatenate(arrays) for arrays in rest)
    sizes = np.array([feature.size for feature in schema.categorical], np.int64)
    history: dict[History, np.ndarray] = {"lengths": lengths, "matches": matches}
    return Inputs(sp.csr_matrix(sp.vstack(ids)), categories, sizes, dense, history, labels, weights)


def logistic_regression(
    data: dict[str, Inputs], history: tuple[History, ...], seed: int
) -> tuple[dict, dict[str, Any]]:
    """Logits by split ("valid", "test"), and the penalty that was chosen. It is convex: the seed does nothing."""
    del seed
    scaler = StandardScaler()
    x = {}
    for split, inputs in data.items():
        dense = np.concatenate([inputs.dense, *(inputs.history[name] for name in history)], axis=1)
        scaled = scaler.fit_transform(dense) if split == "train" else scaler.transform(dense)
        x[split] = sp.csr_matrix(sp.hstack([inputs.ids, sp.csr_matrix(np.asarray(scaled, np.float32))]))
    train, valid = data["train"], data["valid"]
    best: tuple[float, float, LogisticRegression] | None = None
    for c in ProgressBar(PENALTIES, desc="fit", unit="penalty", leave=False):
        model = LogisticRegression(C=c, max_iter=400, tol=1e-6)
        with warnings.catch_warnings():
            # Stopped by the bound on iterations is stopped early, which the validation split judges like a penalty.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x["train"], train.labels, sample_weight=train.weights)
        loss = mean_loss(valid, model.decision_function(x["valid"]))
        if best is None or loss < best[0]:
            best = loss, c, model
    assert best is not None
    return {split: best[2].decision_function(x[split]) for split in ("valid", "test")}, {"c": best[1]}


def mean_loss(inputs: Inputs, logits: np.ndarray) -> float:
    """Mean LogLoss of a split by weight, in nats."""
    return float(np.average(log_losses(inputs.labels, logits), weights=inputs.weights))
