"""Logistic regression and boosted trees on the rows that neural systems train on, for `experiments.learns`, and of the
trees a row of `experiments.compare`.

Both read ids and dense features, and on request the lengths of the histories and the match counts of
`experiments.match_features`. The penalty and the number of trees are chosen on the validation split
only. Needs the extra "dev" (scikit-learn).
"""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from experiments.logistic_regression import CHUNK, one_hot, ragged_rows, sparse_columns
from experiments.match_features import history_lengths, match_counts
from kunlun_jax.data.dataset import Dataset, group_numbers
from kunlun_jax.data.open import open_dataset
from kunlun_jax.data.pack import map_ids
from kunlun_jax.progress import ProgressBar
from kunlun_jax.training.config import TrainConfig
from kunlun_jax.training.metrics import evaluate_predictions, log_losses

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Inverse strengths of the L2 penalty of the regression, summed over rows."""
MOST_CATEGORIES = 255
"""Ids of a feature that trees can split on (a limit of scikit-learn); they do without features of more."""
TREES: dict[str, Any] = {
    "max_iter": 300,
    "learning_rate": 0.1,
    "max_leaf_nodes": 31,
    "max_features": 0.5,
    "l2_regularization": 1.0,
    "early_stopping": False,
}
"""Of scikit-learn; of the trees, the first ones that are best on valid are kept."""
TREE_RATES = (0.05, 0.1, 0.2)
"""Learning rates of which a row of `experiments.compare` has the one that is best on valid."""

History = Literal["lengths", "matches"]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """One split, in the forms that the two models read; arrays over rows."""

    ids: sp.csr_matrix  # a column per id of every context feature
    categories: np.ndarray  # float32, ids of the features that trees can split on
    dense: np.ndarray  # float32, dense features, and a count per id of the multi-valued ones that are small
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
    small = [i for i, feature in enumerate(schema.categorical) if feature.size < MOST_CATEGORIES]
    chunks = []
    for start in ProgressBar(range(span.start, span.stop, CHUNK), desc=f"read {split}", unit="chunk", leave=False):
        rows = dataset.source.rows(np.arange(start, min(start + CHUNK, span.stop)), most)
        dense = [rows.dense]
        for feature in schema.multi_valued:
            if feature.size < MOST_CATEGORIES:
                items = rows.multi_valued[feature.name]
                dense.append(one_hot(items.values, ragged_rows(items.splits), len(rows.row), feature).toarray())
        mapped, _ = map_ids(rows.categorical, schema.categorical)
        chunks.append(
            (
                sparse_columns(dataset, rows, history=False),
                mapped[:, small].astype(np.float32),
                np.concatenate(dense, axis=1),
                history_lengths(schema, rows),
                match_counts(schema, rows),
                rows.labels[:, 0],
                rows.weights,
            )
        )
    ids, *rest = zip(*chunks, strict=True)
    categories, dense, lengths, matches, labels, weights = (np.concatenate(arrays) for arrays in rest)
    return Inputs(
        sp.csr_matrix(sp.vstack(ids)), categories, dense, {"lengths": lengths, "matches": matches}, labels, weights
    )


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


def boosted_trees(
    data: dict[str, Inputs], history: tuple[History, ...], seed: int, rate: float = TREES["learning_rate"]
) -> tuple[dict, dict[str, Any]]:
    """Logits of each split but "train", and the number of trees that was chosen on "valid"."""
    x = {
        split: np.concatenate(
            [inputs.categories, inputs.dense, *(inputs.history[name] for name in history)], axis=1, dtype=np.float32
        )
        for split, inputs in data.items()
    }
    train, valid = data["train"], data["valid"]
    categories = np.arange(train.categories.shape[1])
    settings: dict[str, Any] = TREES | {"learning_rate": rate}
    model = HistGradientBoostingClassifier(
        **settings,
        categorical_features=categories,  # pyright: ignore[reportArgumentType]  typed by its default, a string
        random_state=seed,
    )
    model.fit(x["train"], train.labels, sample_weight=train.weights)
    losses = [mean_loss(valid, np.ravel(logits)) for logits in model.staged_decision_function(x["valid"])]
    trees = int(np.argmin(losses)) + 1
    logits = {}
    for split in [split for split in data if split != "train"]:
        stages = model.staged_decision_function(x[split])
        logits[split] = np.ravel(next(stage for number, stage in enumerate(stages, 1) if number == trees))
    return logits, {"trees": trees}


def trees_as_row(config: TrainConfig, seed: int) -> dict[str, Any]:
    """Boosted trees on the features, histories and splits of a training config, as a row of `experiments.compare`.

    Running rates are among the dense features of the public data sets; ids of over 254 values are left out, and so are
    events but for their number and their matches with the candidate. Rate and number of trees are those of the least
    LogLoss on "valid".
    """
    dataset = open_dataset(config.data)
    most = config.loader.max_events_by_type(dataset.schema)
    data = read(dataset, most, ("train", *config.run.eval_splits))
    found = {rate: boosted_trees(data, ("lengths", "matches"), seed, rate) for rate in TREE_RATES}
    rate = min(found, key=lambda rate: mean_loss(data["valid"], found[rate][0]["valid"]))
    logits, chosen = found[rate]
    metrics = {
        split: evaluate_predictions(
            data[split].labels,
            values,
            data[split].weights,
            group_numbers(dataset.source, np.asarray(dataset.split(split))),
            p_train=dataset.p_train[0],
        )
        for split, values in logits.items()
    }
    return {"splits": metrics, **chosen, "rate": rate}


def mean_loss(inputs: Inputs, logits: np.ndarray) -> float:
    """Mean LogLoss of a split by weight, in nats."""
    return float(np.average(log_losses(inputs.labels, logits), weights=inputs.weights))
