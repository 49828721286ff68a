import numpy as np
import pytest

from kunlun_jax.data.sets.rates import (
    UNIT,
    Rate,
    RunningRates,
    RunningSums,
    first_times,
    log_count,
    log_gap,
    logit,
    pair,
)


def _log(seed: int, rows: int = 200):
    rng = np.random.default_rng(seed)
    entity = rng.integers(0, 9, rows) * 1_000_000_007
    time_ms = rng.integers(0, 60, rows) * 1000  # unsorted, with many ties
    values = rng.integers(0, UNIT + 1, (rows, 2))
    return entity, time_ms, values


@pytest.mark.parametrize("newest", [None, 1, 3])
@pytest.mark.parametrize("since", [None, 20_000])
@pytest.mark.parametrize("seed", range(3))
def test_sums_are_those_of_a_loop_over_all_pairs(seed, since, newest):
    entity, time_ms, values = _log(seed)
    rng = np.random.default_rng(seed + 100)
    asked = rng.integers(0, 11, 80) * 1_000_000_007  # entities 9 and 10 are not in the log
    moments = rng.integers(-5, 66, 80) * 1000 + rng.integers(0, 2, 80)
    since_ms = None if since is None else np.full(80, since)
    before = RunningSums(entity, time_ms, values).before(asked, moments, since_ms, newest)
    order = np.argsort(time_ms, kind="stable")
    for i in range(80):
        mine = [
            j for j in order
            if entity[j] == asked[i] and time_ms[j] < moments[i] and (since is None or time_ms[j] >= since)
        ]  # fmt: skip
        mine = mine if newest is None else mine[-newest:]
        assert before.count[i] == len(mine)
        np.testing.assert_array_equal(before.sums[i], values[mine].sum(axis=0))
        assert before.last_ms[i] == (time_ms[mine[-1]] if mine else -1)


def test_no_rows_at_all():
    nothing = np.zeros(0, np.int64)
    before = RunningSums(nothing, nothing, np.zeros((0, 1), np.int64)).before(np.array([3]), np.array([5]))
    assert before.count.tolist() == [0]
    assert before.sums.tolist() == [[0]]
    assert before.last_ms.tolist() == [-1]


@pytest.mark.parametrize("seed", range(2))
def test_features_are_those_of_a_loop_with_running_priors(seed):
    entity, time_ms, values = _log(seed, 120)
    strength = 4.0
    outcomes = {"click": values[:, 0], "play": values[:, 1]}
    families = (
        Rate("all", np.zeros_like(entity), ("click", "play"), is_feature=False),
        Rate("user", entity, ("click", "play"), "all"),
        Rate("recent", entity, ("click",), "user", newest=2),
    )
    rows = np.arange(120)
    features = RunningRates(time_ms, outcomes, families, strength).features(rows, time_ms)
    assert list(features) == ["user_click", "user_play", "user_count", "recent_click", "recent_count"]
    assert all(values.dtype == np.float32 for values in features.values())
    order = np.argsort(time_ms, kind="stable")
    for i in rows:
        earlier = [j for j in order if time_ms[j] < time_ms[i]]
        own = [j for j in earlier if entity[j] == entity[i]]
        rate = {}
        for name in outcomes:
            whole = (sum(outcomes[name][earlier]) / UNIT + strength * 0.5) / (len(earlier) + strength)
            rate[name] = (sum(outcomes[name][own]) / UNIT + strength * whole) / (len(own) + strength)
            assert features[f"user_{name}"][i] == pytest.approx(np.log(rate[name] / (1 - rate[name])), abs=1e-6)
        recent = (sum(outcomes["click"][own[-2:]]) / UNIT + strength * rate["click"]) / (len(own[-2:]) + strength)
        assert features["recent_click"][i] == pytest.approx(np.log(recent / (1 - recent)), abs=1e-6)
        assert features["user_count"][i] == pytest.approx(np.log1p(len(own)) / 5, abs=1e-6)


def test_bad_arguments_are_refused():
    time_ms = np.arange(3)
    family = Rate("user", time_ms, ("click",))
    with pytest.raises(ValueError, match=r"outcome 'click' ranges 0 \.\. 1001"):
        RunningRates(time_ms, {"click": np.array([0, 1, UNIT + 1])}, (family,), 1.0)
    with pytest.raises(ValueError, match=r"strength of the smoothing is 0\.0"):
        RunningRates(time_ms, {"click": time_ms}, (family,), 0.0)
    orphan = Rate("user", time_ms, ("click",), parent="all")
    with pytest.raises(ValueError, match="names parent 'all'"):
        RunningRates(time_ms, {"click": time_ms}, (orphan,), 1.0)


def test_small_pieces():
    left, right = np.repeat(np.arange(4), 5), np.tile(np.arange(5), 4)
    assert len(np.unique(pair(left, right))) == 20
    assert first_times(np.array([7, 3, 7, 3]), np.array([50, 20, 40, 90])).tolist() == [40, 20, 40, 20]
    assert first_times(np.zeros(0, np.int64), np.zeros(0, np.int64)).tolist() == []
    np.testing.assert_allclose(
        logit(np.array([0.5, 0.0, 1.0])), [0, np.log(1e-3 / (1 - 1e-3)), -np.log(1e-3 / (1 - 1e-3))]
    )
    np.testing.assert_allclose(log_count(np.array([0, 147])), [0, np.log(148) / 5], rtol=1e-6)
    gap = log_gap(np.array([5000, 5000, 5000]), np.array([5000, 4000, -1]))
    np.testing.assert_allclose(gap, [0, np.log(2) / 10, 2], rtol=1e-6)
