"""Evaluation: logits of every example of a split, and metrics over all of them at once."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from kunlun_jax.batch import Batch
from kunlun_jax.data.dataset import Dataset, group_numbers
from kunlun_jax.data.pack import Counts
from kunlun_jax.processes import gathered
from kunlun_jax.progress import ProgressBar
from kunlun_jax.training.metrics import evaluate_predictions
from kunlun_jax.training.placement import own_rows
from kunlun_jax.training.step import Trainer, TrainState
from kunlun_jax.training.stop import Stop
from kunlun_jax.training.totals import of_all


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions of a split, in the order of its rows on any number of devices, filling rows left out.

    Attributes:
      row: int64 ``[rows]``, numbers in the data set.
      logits: float32 ``[rows, tasks]``.
      labels: float32 ``[rows, tasks]``, NaN where there is none.
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
    for batch, new in ProgressBar(
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
    real = np.flatnonzero(row >= 0)
    real = real[np.argsort(row[real], kind="stable")]  # several devices have dealt them out
    counts = of_all(counts, trainer.mesh)()
    return Predictions(row[real].astype(np.int64), values[real], labels[real], weights[real], counts)


class NotFinite(ValueError):
    """A model's logits of a split are not all finite."""


def metrics_of(dataset: Dataset, predictions: Predictions) -> dict[str, Any]:
    """Metrics of each task over the rows that have its label, named ``task/metric`` where there are several.

    They are plain JSON values; of a task without a label that counts, as in a split without weight, only ``rows``
    and ``undefined``, which says why.

    Raises:
      NotFinite: a logit is not finite; the message names split, row, keys and perhaps the column that is to blame.
    """
    schema = dataset.schema
    finite = np.isfinite(predictions.logits).all(axis=1)
    if not finite.all():
        raise NotFinite(_not_finite(dataset, predictions.row, finite))
    groups = group_numbers(dataset.source, predictions.row)
    result = {}
    for index, task in enumerate(schema.tasks):
        there = ~np.isnan(predictions.labels[:, index])
        if not predictions.weights[there].any():
            why = "no row with weight has a label" if predictions.weights.any() else "no row has weight"
            values = {"rows": int(there.sum()), "ne": None, "undefined": why}
        else:
            values = evaluate_predictions(
                labels=predictions.labels[there, index],
                logits=predictions.logits[there, index],
                weights=predictions.weights[there],
                groups=None if groups is None else groups[there],
                p_train=dataset.p_train[index],
            )
        prefix = f"{task}/" if len(schema.tasks) > 1 else ""
        result |= {f"{prefix}{name}": value for name, value in values.items()}
    return result


FAR = 100.0
"""Standard deviations beyond which a value is named as what may have made a logit that is not finite."""


def _not_finite(dataset: Dataset, row: np.ndarray, finite: np.ndarray) -> str:
    """What `NotFinite` says: the first of the rows without finite logits, and what stands out in it.

    A value stands out by its distance from those of the same column in the nearest examples with finite logits.
    """
    first = int(np.argmin(finite))
    split = next(name for name, rows in dataset.splits.items() if int(row[first]) in rows)
    keys = {name: values.tolist()[0] for name, values in dataset.source.keys(row[first : first + 1]).items()}
    of_key = f" ({', '.join(f'{name} {value!r}' for name, value in keys.items())})" if keys else ""
    number = int(row[first]) - dataset.split(split).start
    count = f"the logits of {np.sum(~finite)} of {len(row)} examples are not finite"
    text = f"split {split!r}: {count}, first of row {number}{of_key}"
    near = row[finite][np.argsort(np.abs(row[finite] - row[first]), kind="stable")[:512]]
    if not len(near):
        return f"{text}; those of no example are, so it is the parameters and not this row"
    usual, found = (_dense_values(dataset, index) for index in (np.sort(near), row[first : first + 1]))
    far = {
        name: float(np.abs(values - usual[name].mean()).max() / max(usual[name].std(), 1e-30))
        for name, values in found.items()
        if len(values) and len(usual[name])
    }
    column = max(far, key=lambda name: far[name], default=None)
    if column is None or far[column] < FAR:
        return f"{text}; no value of its dense columns stands out"
    value = found[column][np.argmax(np.abs(found[column] - usual[column].mean()))]
    distance = f"{far[column]:.3g} standard deviations from the mean of the rows around it"
    return f"{text}; its column {column!r} holds {value:g}, {distance}"


def _dense_values(dataset: Dataset, index: np.ndarray) -> dict[str, np.ndarray]:
    """All values of each dense column of some examples, and of the newest thousand events before them, float64."""
    schema = dataset.schema
    rows = dataset.source.rows(index, {event.name: 1000 for event in schema.events})
    values = {name: rows.dense[:, i] for i, name in enumerate(schema.dense)}
    for event in schema.events:
        values |= {f"{event.name}.{name}": rows.events[event.name].dense[:, i] for i, name in enumerate(event.dense)}
    return {name: column.astype(np.float64) for name, column in values.items()}
