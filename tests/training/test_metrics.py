"""Metrics against scikit-learn, against brute force, and where they are not defined."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from kunlun_jax.training.log import progress_text
from kunlun_jax.training.metrics import (
    MetricSums,
    auc,
    entropy,
    evaluate_predictions,
    grouped_auc,
    log_losses,
    ne_names,
)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def sample(rng, rows=500, ties=True):
    labels = (rng.random(rows) < 0.3).astype(np.float32)
    logits = rng.normal(size=rows) + labels
    if ties:
        logits = np.round(logits, 1)
    return labels, logits.astype(np.float32), rng.random(rows).astype(np.float32)


def brute_force_auc(labels, scores, weights):
    """Sum over all pairs of a positive and a negative."""
    positive, negative = labels == 1, labels == 0
    wins = (scores[positive][:, None] > scores[negative][None]) + 0.5 * (
        scores[positive][:, None] == scores[negative][None]
    )
    pairs = weights[positive][:, None] * weights[negative][None]
    return (wins * pairs).sum() / pairs.sum()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_scikit_learn(rng, ties, weighted):
    labels, logits, weights = sample(rng, ties=ties)
    weights = weights if weighted else None
    result = evaluate_predictions(labels, logits, weights, p_train=0.3)
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = log_loss(labels, probabilities, sample_weight=weights)
    assert result["auc"] == pytest.approx(roc_auc_score(labels, logits, sample_weight=weights), abs=1e-12)
    assert result["logloss"] == pytest.approx(expected, rel=1e-12)
    assert result["ne"] == pytest.approx(expected / -(0.3 * np.log(0.3) + 0.7 * np.log(0.7)), rel=1e-12)
    assert result["calibration"] == pytest.approx(
        np.average(probabilities, weights=weights) / np.average(labels.astype(np.float64), weights=weights), rel=1e-12
    )
    assert json.loads(json.dumps(result)) == result


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(-2, 2), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=20
    )
)
def test_auc_and_gauc_are_the_share_of_pairs_won(rows):
    labels, scores, weights, groups = (np.array(column, np.float64) for column in zip(*rows, strict=True))

    def of(selected):
        values = labels[selected], scores[selected], weights[selected]
        both = all((values[2] * (values[0] == label)).sum() > 0 for label in (0, 1))
        return brute_force_auc(*values) if both else None

    value, expected = auc(labels, scores, weights), of(np.ones(len(labels), bool))
    assert (value is None) == (expected is None)
    if expected is not None:
        assert value == pytest.approx(expected, abs=1e-12)

    values = {group: of(groups == group) for group in np.unique(groups)}
    known = {group: value for group, value in values.items() if value is not None}
    gauc, used, excluded = grouped_auc(labels, scores, groups, weights)
    assert (used, excluded) == (len(known), len(values) - len(known))
    if known:
        total = sum(weights[groups == group].sum() for group in known)
        mean = sum(value * weights[groups == group].sum() for group, value in known.items()) / total
        assert gauc == pytest.approx(mean, abs=1e-12)
    else:
        assert gauc is None


def test_gauc_weighs_groups_by_rows_and_counts_those_left_out():
    labels = np.array([0, 1, 1, 0, 0, 1, 1, 1])
    scores = np.array([0.1, 0.9, 0.2, 0.3, 0.1, 0.9, 0.5, 0.6])
    groups = np.array(["a", "a", "b", "b", "b", "b", "c", "c"])
    result = evaluate_predictions(labels, scores, None, groups, p_train=0.5)
    # a: 1 of 1 pair in 2 rows; b: 3 of 4 pairs in 4 rows; c has positives alone.
    assert result["gauc"] == pytest.approx((2 * 1.0 + 4 * 0.75) / 6, abs=1e-15)
    assert (result["gauc_groups"], result["gauc_groups_excluded"]) == (2, 1)


def test_a_rare_class_in_many_rows_is_exact(rng):
    """What histogram AUC gets wrong: 0.2% positives, scores crowded near 0, ties, 32-bit scores."""
    labels = (rng.random(200_000) < 0.002).astype(np.float32)
    logits = (rng.normal(size=200_000) * 0.3 - 6.2 + labels * 0.5).astype(np.float32)
    assert auc(labels, logits) == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_has_no_auc_and_says_so(label):
    result = evaluate_predictions(np.full(4, label), np.arange(4.0), None, np.zeros(4, np.int64), p_train=0.5)
    assert result["auc"] is None
    assert result["auc_undefined"] == f"all labels with weight are {label:g}"
    assert result["gauc"] is None
    assert result["gauc_undefined"] == "no group has both classes"
    assert (result["calibration"] is None) == (label == 0.0)
    assert ("calibration_undefined" in result) == (label == 0.0)
    assert math.isfinite(result["ne"])


def test_a_class_without_weight_is_no_class():
    result = evaluate_predictions(np.array([0, 1, 1]), np.arange(3.0), np.array([0.0, 1.0, 1.0]), p_train=0.5)
    assert result["auc"] is None
    assert result["auc_undefined"] == "all labels with weight are 1"


def test_soft_labels_have_logloss_but_no_auc(rng):
    labels, logits = rng.random(50), rng.normal(size=50)
    result = evaluate_predictions(labels, logits, None, np.zeros(50, np.int64), p_train=0.5)
    probabilities = 1 / (1 + np.exp(-logits))
    expected = -(labels * np.log(probabilities) + (1 - labels) * np.log(1 - probabilities)).mean()
    assert result["logloss"] == pytest.approx(expected, rel=1e-12)
    assert result["auc"] is None
    assert result["auc_undefined"] == result["gauc_undefined"] == "labels are not all 0 or 1"


def test_predicting_the_training_rate_has_ne_one():
    labels = np.array([1, 0, 0, 0])
    logits = np.full(4, np.log(0.25 / 0.75))
    assert evaluate_predictions(labels, logits, p_train=0.25)["ne"] == pytest.approx(1.0, rel=1e-14)
    # The denominator is the training split's, whatever this split's rate is.
    other = evaluate_predictions(labels, logits, p_train=0.5)
    assert other["ne"] == pytest.approx(entropy(0.25) / np.log(2), rel=1e-14)


def test_logits_of_any_size_neither_overflow_nor_round_to_zero():
    losses = log_losses(np.array([1.0, 0.0, 1.0, 0.0]), np.array([-1e4, 1e4, 50.0, -50.0]))
    np.testing.assert_allclose(losses, [1e4, 1e4, np.exp(-50), np.exp(-50)], rtol=1e-12)
    assert evaluate_predictions(np.array([1, 0]), np.array([800.0, -800.0]), p_train=0.5)["logloss"] == 0.0


def test_probabilities_give_what_their_logits_give(rng):
    labels, logits, weights = sample(rng)
    groups = rng.integers(0, 20, len(labels))
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = evaluate_predictions(labels, logits, weights, groups, p_train=0.3)
    result = evaluate_predictions(labels, probabilities, weights, groups, p_train=0.3, probabilities=True)
    assert result == pytest.approx(expected, rel=1e-12)


def test_certain_and_right_costs_nothing():
    result = evaluate_predictions(np.array([0, 1]), np.array([0.0, 1.0]), p_train=0.5, probabilities=True)
    assert (result["logloss"], result["auc"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": np.array([0.0, np.nan])}, r"logits\[1\] is nan, and 1 rows .* finite"),
        ({"labels": np.array([0.0, 2.0])}, r"labels\[1\] is 2.0"),
        ({"labels": np.array([np.nan, 1.0])}, r"labels\[0\] is nan"),
        ({"weights": np.array([1.0, -1.0])}, r"weights\[1\] is -1.0"),
        ({"weights": np.array([1.0, np.inf])}, r"weights\[1\] is inf"),
        ({"weights": np.zeros(2)}, "no row of 2 has weight"),
        ({"weights": np.ones(3)}, r"weights have shape \(3,\); .*\[2\]"),
        ({"groups": np.ones((2, 1))}, r"groups have shape \(2, 1\)"),
        ({"logits": np.array([0.5, 1.5]), "probabilities": True}, r"probabilities\[1\] is 1.5"),
        ({"logits": np.array([1.0, 0.5]), "probabilities": True}, r"probabilities\[0\] is 1.0.*less certain"),
        ({"p_train": 0.0}, "p_train is 0.0; NE needs a rate strictly between"),
        ({"p_train": 1.0}, "p_train is 1.0"),
    ],
)
def test_bad_input_is_an_error_that_names_it(change, message):
    given = {"labels": np.array([0.0, 1.0]), "logits": np.array([0.5, 0.5]), "p_train": 0.5} | change
    with pytest.raises(ValueError, match=message):
        evaluate_predictions(**given)


def test_auc_refuses_what_it_cannot_rank():
    with pytest.raises(ValueError, match=r"scores\[1\] is nan"):
        auc(np.array([0, 1]), np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match=r"labels\[0\] is 0.5"):
        auc(np.array([0.5, 1]), np.array([0.0, 1.0]))


def test_sums_over_steps_give_the_metrics_of_all_rows(rng):
    tasks = 2
    p_train = (0.3, 0.6)
    labels = (rng.random((6, 64, tasks)) < 0.4).astype(np.float32)
    logits = rng.normal(size=(6, 64, tasks)).astype(np.float32) * 3
    weights = rng.integers(0, 3, (6, 64)).astype(np.float32)
    step = jax.jit(lambda sums, *batch: jax.tree.map(jnp.add, sums, MetricSums.of(*batch)), donate_argnums=0)
    sums = MetricSums.zeros(tasks)
    for batch in zip(logits, labels, weights, strict=True):
        sums = step(sums, *map(jnp.asarray, batch))
    result = jax.device_get(sums).metrics(p_train, ["click", "like"])
    for index, task in enumerate(["click", "like"]):
        expected = evaluate_predictions(
            labels[..., index].ravel(), logits[..., index].ravel(), weights.ravel(), p_train=p_train[index]
        )
        assert result[f"{task}/loss"] == pytest.approx(expected["logloss"], rel=2e-6)
        assert result[f"{task}/ne"] == pytest.approx(expected["ne"], rel=2e-6)
        assert result[f"{task}/calibration"] == pytest.approx(expected["calibration"], rel=2e-6)
    assert set(jax.device_get(sums).metrics(p_train)) == {
        f"{i}/{name}" for i in (0, 1) for name in ("loss", "ne", "calibration")
    }


def test_sums_of_one_task_have_plain_names_and_filling_rows_count_nothing():
    logits = jnp.array([[0.0], [jnp.nan], [jnp.inf]])
    sums = MetricSums.of(logits, jnp.array([[0.0], [1.0], [1.0]]), jnp.array([1.0, 0.0, 0.0]))
    result = jax.device_get(sums).metrics((0.5,))
    assert result == {
        "loss": pytest.approx(np.log(2), rel=1e-6),
        "ne": pytest.approx(1.0, rel=1e-6),
        "calibration": None,
    }


def test_sums_are_finite_for_large_logits_and_keep_small_losses():
    logits = jnp.array([[1e4], [30.0]])
    sums = MetricSums.of(logits, jnp.array([[0.0], [1.0]]), jnp.array([1.0, 1.0]))
    assert sums.logloss[0] == 1e4
    small = MetricSums.of(logits[1:], jnp.ones((1, 1)), jnp.ones(1))
    assert float(small.logloss[0]) == pytest.approx(np.exp(-30.0), rel=1e-5)


def test_sums_without_weight_are_unknown():
    assert jax.device_get(MetricSums.zeros(1)).metrics((0.5,)) == {"loss": None, "ne": None, "calibration": None}
    assert progress_text({"ne": None, "examples_per_second": 1234.0}) == "1,234 examples/s"


def test_an_ne_is_told_from_counts_of_what_is_named_like_it():
    counts = {"events/ne": 3, "beyond_vocabulary/ne": 1, "events/done": 2}
    line = {"click/ne": 0.9, "click/loss": 0.5, "buy/ne": None, **counts}
    assert ne_names(line) == ["click/ne", "buy/ne"]
    assert ne_names({"ne": 1.0, **counts}) == ["ne"]
    assert progress_text(line) == "click/ne 0.9000"


def test_sums_that_overflowed_are_unknown():
    sums = MetricSums(*(np.array([x], np.float32) for x in (np.inf, 1.0, 2.0, 4.0)))
    assert sums.metrics((0.5,)) == {"loss": None, "ne": None, "calibration": 0.5}


def test_sums_leave_out_labels_that_are_missing(rng):
    labels = (rng.random((64, 2)) < 0.4).astype(np.float32)
    logits = rng.normal(size=(64, 2)).astype(np.float32)
    weights = rng.integers(0, 3, 64).astype(np.float32)
    there = rng.random((64, 2)) < 0.5
    logits[~there] = np.inf
    given = np.where(there, labels, np.nan).astype(np.float32)
    result = MetricSums.of(jnp.asarray(logits), given, weights).metrics((0.3, 0.6))
    for task, p_train in enumerate((0.3, 0.6)):
        kept = there[:, task]
        expected = evaluate_predictions(labels[kept, task], logits[kept, task], weights[kept], p_train=p_train)
        assert result[f"{task}/loss"] == pytest.approx(expected["logloss"], rel=2e-6)
        assert result[f"{task}/calibration"] == pytest.approx(expected["calibration"], rel=2e-6)


def test_sums_with_rates_missing_are_errors():
    with pytest.raises(ValueError, match="1 rates and 2 names for 2 tasks"):
        jax.device_get(MetricSums.zeros(2)).metrics((0.5,))
