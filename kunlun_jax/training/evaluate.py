"""Evaluation: logits of every example of a split, and metrics over all of them at once."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from tqdm import tqdm

from kunlun_jax.batch import Batch
from kunlun_jax.data.dataset import Dataset
from kunlun_jax.data.pack import Counts
from kunlun_jax.processes import gathered
from kunlun_jax.training.metrics import evaluate_predictions
from kunlun_jax.training.placement import own_rows
from kunlun_jax.training.step import Trainer, TrainState
from kunlun_jax.training.stop import Stop
from kunlun_jax.training.totals import of_all


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions of a split, in the order of its rows, filling rows left out.

    Attributes:
      row: int64 ``[rows]``, numbers in the data set.
      logits: float32 ``[rows, tasks]``.
      labels: float32 ``[rows, tasks]``.
      weights: float32 ``[rows]``.
      counts: what was cut or unknown on the way.
    """

    row: np.ndarray
    logits: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    counts: Counts


def predict(
    trainer: Trainer,
    state: TrainState,
    loader: Iterable[tuple[Batch, Counts]],
    *,
    total: int,
    progress: bool,
    name: str,
    stop: Stop | None = None,
) -> Predictions | None:
    """Runs the model over `loader`; `total` batches, for the progress bar alone. None once `stop` has a signal.

    Of several processes each runs over its own shares, and all get all predictions.
    """
    logits, batches, counts = [], [], Counts()
    for batch, new in tqdm(
        loader, total=total, desc=f"evaluate {name}", unit="batch", disable=not progress, leave=False
    ):
        logits.append(trainer.predict(state, trainer.put(batch)))
        batches.append((batch.row, batch.labels, batch.weights))
        counts += new
        if stop is not None and stop.reached():
            return None
    # Filling rows have number -1; a real row may have weight 0 and still wants its prediction.
    columns = *zip(*batches, strict=True), [own_rows(of_batch) for of_batch in logits]
    row, labels, weights, values = (np.concatenate(gathered(np.stack(column))) for column in columns)
    real = row >= 0
    counts = of_all(counts, trainer.mesh)()
    return Predictions(row[real].astype(np.int64), values[real], labels[real], weights[real], counts)


def metrics_of(dataset: Dataset, predictions: Predictions) -> dict[str, Any]:
    """Metrics of each task, named ``task/metric`` where there are several; plain JSON values."""
    schema = dataset.schema
    groups = dataset.source.keys(predictions.row)[schema.group] if schema.group else None
    result = {}
    for index, task in enumerate(schema.tasks):
        values = evaluate_predictions(
            labels=predictions.labels[:, index],
            logits=predictions.logits[:, index],
            weights=predictions.weights,
            groups=groups,
            p_train=dataset.p_train[index],
        )
        prefix = f"{task}/" if len(schema.tasks) > 1 else ""
        result |= {f"{prefix}{name}": value for name, value in values.items()}
    return result
