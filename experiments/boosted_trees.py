"""Boosted trees on the features that one would count by hand, by LightGBM: the floor that neural systems must beat.

They read context ids, dense features (running rates among them on the public data sets), and on request the lengths of
the histories and the match counts of `experiments.match_features`; of the events' ids nothing else. The number of trees
is that of the least LogLoss on the validation split. Needs the extra "dev" (and, of the system, libgomp).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import lightgbm
import numpy as np

from experiments.shallow import FEW, History, Inputs, mean_loss, read
from kunlun_jax.data.dataset import Dataset, group_numbers
from kunlun_jax.data.open import DataConfig, open_dataset
from kunlun_jax.progress import ProgressBar
from kunlun_jax.training.config import TrainConfig
from kunlun_jax.training.metrics import evaluate_predictions

TREES: dict[str, Any] = {
    "objective": "binary",
    "metric": "binary_logloss",
    "learning_rate": 0.05,
    "num_leaves": 31,
    "feature_fraction_bynode": 0.5,
    "lambda_l2": 1.0,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}
"""Parameters of LightGBM that nothing is searched for. The seed draws the features that a node may split by."""
MOST_TREES, PATIENCE = 10_000, 300
"""Where boosting ends, and after how many trees that do not better "valid" it ends before."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is searched for.

    Attributes:
      every_id: whether features of `FEW` ids and more are read, too.
      id_penalty: LightGBM's `cat_l2`, the L2 penalty in splits by ids, whose default is 10.
    """

    every_id: bool = False
    id_penalty: float = 10.0


SEARCH = (Settings(), *(Settings(every_id=True, id_penalty=penalty) for penalty in (100.0, 1000.0, 10_000.0)))
"""What is tried of them; by ids of many values a much stronger penalty is better (LOG.md)."""
Fit = tuple[dict[str, np.ndarray], dict[str, Any]]
"""Logits of each split but "train", float64 ``[rows]``, and what was chosen on "valid"."""


def boosted_trees(
    data: Mapping[str, Inputs], history: tuple[History, ...], seed: int, settings: Settings = SEARCH[0]
) -> Fit:
    """The fit with a seed; "trees" is what was chosen, their number."""

    def columns(inputs: Inputs) -> np.ndarray:
        ids = inputs.categories[:, (inputs.sizes < FEW) | settings.every_id]
        return np.concatenate(
            [ids, inputs.dense, *(inputs.history[name] for name in history)], axis=1, dtype=np.float32
        )

    train, valid = data["train"], data["valid"]
    known = np.count_nonzero((train.sizes < FEW) | settings.every_id)
    rows = lightgbm.Dataset(
        columns(train), train.labels, weight=train.weights, categorical_feature=list(range(known)), params=TREES
    )
    model = lightgbm.train(
        TREES | {"cat_l2": settings.id_penalty, "seed": seed},
        rows,
        MOST_TREES,
        [lightgbm.Dataset(columns(valid), valid.labels, weight=valid.weights, reference=rows)],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )
    logits = {
        split: np.asarray(model.predict(columns(inputs), raw_score=True, num_iteration=model.best_iteration))
        for split, inputs in data.items()
        if split != "train"
    }
    return logits, {"trees": model.best_iteration}


def search(data: Mapping[str, Inputs], history: tuple[History, ...]) -> tuple[Settings, Fit]:
    """The settings in `SEARCH` of the least LogLoss on "valid" with seed 0, and that fit."""
    best: tuple[float, Settings, Fit] | None = None
    for settings in ProgressBar(SEARCH, desc="search", unit="fit", leave=False):
        fit = boosted_trees(data, history, 0, settings)
        loss = mean_loss(data["valid"], fit[0]["valid"])
        if best is None or loss < best[0]:
            best = loss, settings, fit
    assert best is not None
    return best[1:]


@functools.lru_cache(maxsize=1)
def _searched(
    data: DataConfig, most: tuple[tuple[str, int], ...], splits: tuple[str, ...]
) -> tuple[Dataset, dict[str, Inputs], tuple[Settings, Fit]]:
    """A data set, what trees read of it, and what `search` found: all seeds of a comparison have the same settings."""
    dataset = open_dataset(data)
    inputs = read(dataset, dict(most), ("train", *splits))
    return dataset, inputs, search(inputs, ("lengths", "matches"))


def as_row(config: TrainConfig, seed: int) -> dict[str, Any]:
    """Trees on the features, histories and splits of a training config, as a row of `experiments.compare`.

    Settings are searched for with seed 0, as neural systems' rates are.
    """
    most = tuple(config.loader.max_events_by_type(open_dataset(config.data).schema).items())
    dataset, data, (settings, first) = _searched(config.data, most, config.run.eval_splits)
    logits, chosen = first if seed == 0 else boosted_trees(data, ("lengths", "matches"), seed, settings)
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
    return {"splits": metrics, **chosen, **dataclasses.asdict(settings), "lightgbm": lightgbm.__version__}
