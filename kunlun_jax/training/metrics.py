"""Metrics of click predictions: exact over a split, on the host in float64; sums over training steps, on the device.

Definitions, for labels ``y``, predictions ``p = sigmoid(logit)``, weights ``w``:

- LogLoss: weighted mean of ``-(y log p + (1 - y) log(1 - p))``, in nats, from logits without overflow.
- NE: LogLoss divided by that of always predicting ``p_train``, ``-(r log p_train + (1 - r) log(1 - p_train))`` with
  ``r = p_train``: the entropy of the training split's rate, fixed by the data set, so one number for every split.
- AUC: probability that a positive is ranked above a negative, a tie counting one half; the exact rank statistic.
- gAUC: AUC of each group (mostly a user), averaged by the groups' weight (rows, if unweighted). Groups with one class
  have no AUC; they are left out and counted.
- Calibration: mean prediction over mean label.

What is undefined is None with a reason beside it, never a number.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, Shaped

from kunlun_jax.batch import pytree_dataclass


def entropy(rate: float) -> float:
    """Entropy of a coin that shows heads at `rate`, in nats: the denominator of NE.

    Raises:
      ValueError: `rate` is not strictly between 0 and 1.
    """
    if not 0.0 < rate < 1.0:
        raise ValueError(f"p_train is {rate}; NE needs a rate strictly between 0 and 1: a split with both classes")
    return float(-(rate * np.log(rate) + (1.0 - rate) * np.log1p(-rate)))


def ne_names(line: Mapping[str, Any]) -> list[str]:
    """The fields of a metrics line that are an NE: ``ne``, or ``task/ne`` of each task, in their order.

    A count of an event type or feature named ne, such as ``events/ne``, is an integer, which no NE is.
    """
    return [name for name, value in line.items() if name.split("/")[-1] == "ne" and not isinstance(value, int)]


def log_losses(
    labels: Shaped[np.ndarray, " rows"], logits: Shaped[np.ndarray, " rows"]
) -> Float64[np.ndarray, " rows"]:
    """LogLoss of each row in nats, float64; exact to rounding for logits of any size."""
    labels, logits = labels.astype(np.float64), logits.astype(np.float64)
    return labels * np.logaddexp(0.0, -logits) + (1.0 - labels) * np.logaddexp(0.0, logits)


def auc(
    labels: Shaped[np.ndarray, " rows"],
    scores: Shaped[np.ndarray, " rows"],
    weights: Shaped[np.ndarray, " rows"] | None = None,
) -> float | None:
    """Exact AUC; any increasing transform of the scores gives the same. None if a class has no weight.

    Args:
      labels: 0 or 1.
      scores: higher means likelier; not NaN.
      weights: >= 0, default 1.

    Raises:
      ValueError: a label is neither 0 nor 1, or a score is NaN.
    """
    value = _auc_of_groups(labels, scores, _weights(weights, len(labels)), np.zeros(len(labels), np.int64), 1)[0][0]
    return None if np.isnan(value) else float(value)


def grouped_auc(
    labels: Shaped[np.ndarray, " rows"],
    scores: Shaped[np.ndarray, " rows"],
    groups: Shaped[np.ndarray, " rows"],
    weights: Shaped[np.ndarray, " rows"] | None = None,
) -> tuple[float | None, int, int]:
    """gAUC, the number of groups in it, and the number left out for having one class (or no weight).

    Args:
      labels: 0 or 1.
      scores: higher means likelier; not NaN.
      groups: what each row belongs to: integers or strings.
      weights: >= 0, default 1.

    Returns:
      ``(gauc, groups, excluded)``; gauc is None if no group has both classes.

    Raises:
      ValueError: a label is neither 0 nor 1, or a score is NaN.
    """
    names, codes = np.unique(groups, return_inverse=True)
    values, weight = _auc_of_groups(labels, scores, _weights(weights, len(labels)), codes, len(names))
    known = ~np.isnan(values)
    count = int(known.sum())
    value = float(np.average(values[known], weights=weight[known])) if count else None
    return value, count, len(names) - count


def evaluate_predictions(
    labels: np.ndarray,
    logits: np.ndarray,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    *,
    p_train: float,
    probabilities: bool = False,
) -> dict[str, Any]:
    """All metrics of one task over a whole split, as plain JSON values.

    Args:
      labels: ``[rows]`` in [0, 1]; AUC and gAUC are defined for 0 and 1 alone.
      logits: ``[rows]``, finite; with `probabilities`, predictions in [0, 1] instead.
      weights: ``[rows]`` >= 0, default 1.
      groups: ``[rows]`` integers or strings, for gAUC; without them there is none in the result.
      p_train: rate of the training split, strictly between 0 and 1.
      probabilities: whether `logits` are probabilities; a certain prediction that is wrong costs infinity, and is
        refused.

    Returns:
      ``rows``, ``logloss`` (nats), ``ne``, ``auc``, ``calibration``, ``label_mean``, ``prediction_mean``, and with
      groups ``gauc``, ``gauc_groups``, ``gauc_groups_excluded``. A value that is not defined is None, and
      ``<name>_undefined`` says why.

    Raises:
      ValueError: shapes differ, nothing has weight, or a value is out of range; the message names the first such row.
    """
    labels, scores, weights = np.asarray(labels), np.asarray(logits), _weights(weights, len(labels))
    name = "probabilities" if probabilities else "logits"
    named = {"labels": labels, name: scores, "weights": weights} | ({} if groups is None else {"groups": groups})
    for key, value in named.items():
        if np.shape(value) != (len(labels),):
            raise ValueError(f"{key} have shape {np.shape(value)}; expected [{len(labels)}], one value per label")
    labels, scores = labels.astype(np.float64), scores.astype(np.float64)
    _refuse("labels", labels, (labels >= 0) & (labels <= 1), "a number in [0, 1]")
    _refuse("weights", weights, np.isfinite(weights) & (weights >= 0), "a finite number >= 0")
    if weights.sum() == 0.0:
        raise ValueError(f"no row of {len(labels)} has weight > 0: there is nothing to measure")
    if probabilities:
        certain_and_wrong = ((scores == 0) & (labels > 0)) | ((scores == 1) & (labels < 1))
        _refuse(name, scores, (scores >= 0) & (scores <= 1), "a number in [0, 1]")
        _refuse(name, scores, ~certain_and_wrong, "less certain: its label differs, so its LogLoss is infinite")
        predictions = scores
        # Of a class with no share of the label nothing is charged, though the log of its probability may be infinite.
        with np.errstate(divide="ignore", invalid="ignore"):
            losses = -np.where(labels > 0, labels * np.log(scores), 0.0)
            losses -= np.where(labels < 1, (1.0 - labels) * np.log1p(-scores), 0.0)
    else:
        _refuse(name, scores, np.isfinite(scores), "a finite number")
        predictions = np.exp(-np.logaddexp(0.0, -scores))
        losses = log_losses(labels, scores)

    logloss, label_mean, prediction_mean = (
        float(np.average(values, weights=weights)) for values in (losses, labels, predictions)
    )
    result: dict[str, Any] = {
        "rows": len(labels),
        "logloss": logloss,
        "ne": logloss / entropy(p_train),
        "auc": None,
        "calibration": prediction_mean / label_mean if label_mean > 0 else None,
        "label_mean": label_mean,
        "prediction_mean": prediction_mean,
    }
    if label_mean == 0.0:
        result["calibration_undefined"] = "the mean label is 0"
    binary = bool(np.isin(labels, (0.0, 1.0)).all())
    not_binary = None if binary else "labels are not all 0 or 1"
    if binary:
        result["auc"] = auc(labels, scores, weights)
    if result["auc"] is None:
        result["auc_undefined"] = not_binary or f"all labels with weight are {label_mean:g}"
    if groups is not None:
        result["gauc"], result["gauc_groups"], result["gauc_groups_excluded"] = (
            grouped_auc(labels, scores, np.asarray(groups), weights) if binary else (None, 0, len(np.unique(groups)))
        )
        if result["gauc"] is None:
            result["gauc_undefined"] = not_binary or "no group has both classes"
    return result


@pytree_dataclass
class MetricSums:
    """Sums over examples that training metrics are made of, one value a task; two are added leaf by leaf.

    They stay on the device as float32 ``[tasks]`` until a log line wants them, so a step waits for nothing. Meant for
    some hundred steps: a float32 sum of n terms is good to about ``n * 6e-8``.

    Attributes:
      logloss: sum of weight times LogLoss in nats.
      prediction: sum of weight times predicted probability.
      label: sum of weight times label.
      weight: sum of weights of the examples that have this label.
    """

    logloss: Float[Array | np.ndarray, " tasks"]
    prediction: Float[Array | np.ndarray, " tasks"]
    label: Float[Array | np.ndarray, " tasks"]
    weight: Float[Array | np.ndarray, " tasks"]

    @classmethod
    def zeros(cls, tasks: int) -> "MetricSums":
        """Sums over no example. Four arrays, not one four times: a step donates each."""
        return cls(*(jnp.zeros(tasks, jnp.float32) for _ in range(4)))

    @classmethod
    def of(
        cls,
        logits: Float[Array, "batch tasks"],
        labels: Float[Array | np.ndarray, "batch tasks"],
        weights: Float[Array | np.ndarray, " batch"],
    ) -> "MetricSums":
        """Sums over a batch. Rows of weight 0 and labels that are NaN count nothing, whatever their logits are."""
        weight, labels = jnp.asarray(weights, jnp.float32)[:, None], jnp.asarray(labels, jnp.float32)
        counts = (weight > 0) & ~jnp.isnan(labels)
        logits = jnp.where(counts, logits.astype(jnp.float32), 0.0)
        losses = labels * jnp.logaddexp(0.0, -logits) + (1.0 - labels) * jnp.logaddexp(0.0, logits)
        predictions = jnp.exp(-jnp.logaddexp(0.0, -logits))
        terms = (losses, predictions, labels, jnp.ones_like(labels))
        return cls(*(jnp.where(counts, weight * term, 0.0).sum(axis=0) for term in terms))

    def metrics(self, p_train: Sequence[float], tasks: Sequence[str] | None = None) -> dict[str, float | None]:
        """``loss`` (mean LogLoss in nats), ``ne`` and ``calibration`` (None while no label is positive), on the host.

        All three are None while no example has weight, and one is None where its sums overflowed. With several tasks
        each is named ``task/metric``, by the names in `tasks`, else by number.

        Raises:
          ValueError: `p_train` is not one rate a task.
        """
        count = len(self.weight)
        names = [str(index) for index in range(count)] if tasks is None else list(tasks)
        if len(p_train) != count or len(names) != count:
            raise ValueError(
                f"{len(p_train)} rates and {len(names)} names for {count} tasks; expected one of each per task"
            )
        logloss, prediction, label, weight = (
            np.asarray(sums, np.float64) for sums in (self.logloss, self.prediction, self.label, self.weight)
        )
        result: dict[str, float | None] = {}
        for index, name in enumerate(names):
            prefix = f"{name}/" if count > 1 else ""
            loss = _ratio(logloss[index], weight[index])
            result[f"{prefix}loss"] = loss
            result[f"{prefix}ne"] = None if loss is None else loss / entropy(p_train[index])
            result[f"{prefix}calibration"] = _ratio(prediction[index], label[index])
        return result


def _ratio(total: np.float64, of: np.float64) -> float | None:
    """None where there is nothing to divide by, or either sum has overflowed."""
    return float(total / of) if of > 0 and np.isfinite(total) and np.isfinite(of) else None


def _weights(weights: np.ndarray | None, rows: int) -> np.ndarray:
    return np.ones(rows) if weights is None else np.asarray(weights, np.float64)


def _refuse(name: str, values: np.ndarray, good: np.ndarray, wanted: str) -> None:
    """A ValueError that names the first bad row, if there is one."""
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(
            f"{name}[{row}] is {values[row]}, and {int((~good).sum())} rows in all are bad; expected {wanted}"
        )


def _auc_of_groups(
    labels: Shaped[np.ndarray, " rows"],
    scores: Shaped[np.ndarray, " rows"],
    weights: Float64[np.ndarray, " rows"],
    groups: Int[np.ndarray, " rows"],
    count: int,
) -> tuple[Float64[np.ndarray, " groups"], Float64[np.ndarray, " groups"]]:
    """AUC of each group, NaN where a class has no weight, and its weight; groups are numbered below `count`."""
    _refuse("labels", labels, np.isin(labels, (0, 1)), "0 or 1")
    _refuse("scores", scores, ~np.isnan(scores), "a number")
    kept = weights > 0
    labels, scores, weights, groups = labels[kept] == 1, scores[kept], weights[kept], groups[kept]
    order = np.lexsort((scores, groups))
    labels, scores, weights, groups = labels[order], scores[order], weights[order], groups[order]
    # A run: rows of one group and one score, which tie with each other.
    new_run = np.ones(len(scores), bool)
    new_run[1:] = (scores[1:] != scores[:-1]) | (groups[1:] != groups[:-1])
    run_start = np.flatnonzero(new_run)
    run_group = groups[run_start]
    positive = np.add.reduceat(weights * labels, run_start) if len(run_start) else np.zeros(0)
    negative = np.add.reduceat(weights * ~labels, run_start) if len(run_start) else np.zeros(0)
    # (bincount of nothing is of integers.)
    positives = np.bincount(run_group, positive, count).astype(np.float64)
    negatives = np.bincount(run_group, negative, count).astype(np.float64)
    # Negatives of the same group at lower scores: all before the run, less those of the groups before.
    before_group = np.cumsum(negatives) - negatives
    below = np.cumsum(negative) - negative - before_group[run_group]
    won = np.bincount(run_group, positive * (below + 0.5 * negative), count)
    return won / np.where((positives > 0) & (negatives > 0), positives * negatives, np.nan), positives + negatives
