"""The scaling laws on curves whose truth is known: exact without noise, and intervals that cover it as they say."""

import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.stats import binom

from kunlun_jax import scaling
from kunlun_jax.scaling import efficiency, fit_log, fit_power

FLOPS = np.repeat(1e5 * 10 ** np.linspace(0, 2, 6), 3)
"""Six sizes over two decades, three seeds of each."""
DECADES = np.log10(FLOPS / 1e6)


def strayed(rng: np.random.Generator, sizes: float = 0.002, seeds: float = 0.003) -> np.ndarray:
    """What is added to a law: by size, and by run."""
    return np.repeat(rng.normal(0, sizes, 6), 3) + rng.normal(0, seeds, 18)


def covers(estimate: scaling.Estimate, truth: float) -> bool:
    low, high = estimate.interval
    return low <= truth <= high


def within_chance(covered: int, of: int, share: float = 0.95) -> bool:
    """Whether so many of 95% intervals may well cover: no rarer than 1 in 1000 on either side."""
    low, high = binom.ppf([1e-3, 1 - 1e-3], of, share)
    return low <= covered <= high


def test_a_line_without_noise_is_found_exactly():
    law = fit_log(FLOPS, 0.82 - 0.02 * DECADES)
    assert (law.ne_0.value, law.eta.value, law.r_squared) == pytest.approx((0.82, 0.02, 1.0), abs=1e-12)
    assert law.eta.interval == pytest.approx((0.02, 0.02), abs=1e-9)
    np.testing.assert_allclose(law.predict(np.array([1e6, 1e8])), [0.82, 0.78], rtol=1e-12)


@pytest.mark.parametrize(("e", "a", "b"), [(0.7, 0.1, 0.4), (0.68, 0.13, 0.15), (0.75, 0.02, 0.9)])
def test_a_curve_without_noise_is_found_exactly(e, a, b):
    law = fit_power(FLOPS, e + a * (FLOPS / 1e6) ** -b)
    assert (law.e.value, law.a.value, law.b.value) == pytest.approx((e, a, b), rel=1e-4)
    assert law.r_squared == pytest.approx(1) and law.e.interval == pytest.approx((e, e), abs=1e-6)
    np.testing.assert_allclose(law.predict(np.array([1e8])), [e + a * 100**-b], rtol=1e-5)


def test_a_line_is_that_of_numpy():
    ne = 0.82 - 0.02 * DECADES + strayed(np.random.default_rng(0))
    slope, height = np.polyfit(DECADES, ne, 1)
    law = fit_log(FLOPS, ne)
    assert (law.ne_0.value, law.eta.value) == pytest.approx((height, -slope), rel=1e-10)
    mean = ne.reshape(6, 3).mean(axis=1)
    assert law.r_squared == pytest.approx(np.corrcoef(DECADES[::3], mean)[0, 1] ** 2, rel=1e-10)


@pytest.mark.parametrize("outlier", [0.0, 0.08])
def test_a_curve_is_that_of_scipy(outlier):
    """The same loss by another search, from the truth; one size may have failed."""
    ne = (0.7 + 0.1 * (FLOPS / 1e6) ** -0.4) * np.exp(strayed(np.random.default_rng(3)))
    ne[9:12] += outlier
    x, y = np.log(FLOPS[::3] / 1e6), np.log(ne.reshape(6, 3).mean(axis=1))
    found = least_squares(
        lambda p: y - np.log(np.exp(p[0]) + np.exp(p[1] - np.exp(p[2]) * x)),
        np.log([0.7, 0.1, 0.4]),
        loss="huber",
        f_scale=scaling.HUBER,
        xtol=1e-12,
        ftol=1e-12,
        gtol=1e-12,
    )
    law = fit_power(FLOPS, ne)
    assert (law.e.value, law.a.value, law.b.value) == pytest.approx(np.exp(found.x), rel=1e-3)


def test_intervals_of_a_line_and_of_efficiency_cover_as_often_as_they_say():
    rng, times = np.random.default_rng(0), 400
    covered = np.zeros(3, int)
    for seed in range(times):
        own, other = (
            fit_log(FLOPS, 0.82 - eta * DECADES + strayed(rng), seed=2 * seed + place)
            for place, eta in enumerate((0.02, 0.012))
        )
        ratio = efficiency(own, other)
        covered += [covers(own.eta, 0.02), covers(own.ne_0, 0.82), covers(ratio, 0.02 / 0.012)]
    assert all(within_chance(count, times) for count in covered), covered / times


def test_intervals_of_the_fewest_sizes_and_one_seed_have_ends_and_cover_nearly_as_often():
    """Errors of draws from few residuals are rough: some 92% cover."""
    rng, times = np.random.default_rng(0), 400
    flops = 1e5 * 10 ** np.linspace(0, 2, scaling.LEAST_LOG)
    covered, widths = 0, []
    for seed in range(times):
        law = fit_log(flops, 0.82 - 0.02 * np.log10(flops / 1e6) + rng.normal(0, 0.003, len(flops)), seed=seed)
        covered += covers(law.eta, 0.02)
        widths.append(np.diff(law.ne_0.interval)[0])
    assert within_chance(covered, times, 0.92), covered / times
    assert np.median(widths) > 0.01 and max(widths) < 0.3


def test_draws_of_two_systems_are_independent_if_their_seeds_differ():
    ne = 0.7 + 0.1 * (FLOPS / 1e6) ** -0.15
    own, same, other = (fit_log(FLOPS, ne, seed=seed).eta.draws for seed in (0, 0, 1))
    assert np.corrcoef(own, same)[0, 1] > 0.99 and abs(np.corrcoef(own, other)[0, 1]) < 0.2


def test_intervals_of_a_curve_cover_as_often_as_they_say(monkeypatch):
    monkeypatch.setattr(scaling, "DRAWS", 200)
    rng, times = np.random.default_rng(0), 200
    covered = np.zeros(3, int)
    for seed in range(times):
        ne = (0.7 + 0.1 * (FLOPS / 1e6) ** -0.4) * np.exp(strayed(rng, 0.001, 0.002))
        law = fit_power(FLOPS, ne, seed=seed)
        covered += [covers(law.e, 0.7), covers(law.a, 0.1), covers(law.b, 0.4)]
    assert all(within_chance(count, times) for count in covered), covered / times


def test_efficiency_against_what_gains_nothing_has_no_upper_end():
    rng = np.random.default_rng(0)
    own = fit_log(FLOPS, 0.82 - 0.02 * DECADES + strayed(rng))
    low, high = efficiency(own, fit_log(FLOPS, 0.82 - 0.0005 * DECADES + strayed(rng))).interval
    assert 0 < low < np.inf and high == np.inf
    assert efficiency(own, fit_log(FLOPS, 0.82 + 0.02 * DECADES)).value == np.inf


def test_a_seed_makes_the_same_intervals():
    ne = 0.82 - 0.02 * DECADES + strayed(np.random.default_rng(0))
    first, again, other = (fit_log(FLOPS, ne, seed=seed).eta.interval for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("eta", [0.02, -0.02])
def test_a_line_has_no_floor_and_says_so(eta):
    """It has none within its interval, even where noise bends it a little; nor where larger sizes are worse."""
    law = fit_power(FLOPS, 0.82 - eta * DECADES + strayed(np.random.default_rng(1)))
    assert law.e.interval[0] == -np.inf and law.a.interval[1] == np.inf and covers(law.b, 0)
    np.testing.assert_allclose(law.predict(FLOPS), 0.82 - eta * DECADES, atol=6e-3)


@pytest.mark.parametrize(
    ("fit", "change", "message"),
    [
        (fit_log, lambda flops, ne: (flops[:9], ne[:9]), "flops holds 3 different sizes; .* at least 4"),
        (fit_power, lambda flops, ne: (flops[:12], ne[:12]), "flops holds 4 different sizes; .* at least 5"),
        (fit_log, lambda flops, ne: (flops, np.where(flops > 1e6, np.nan, ne)), r"ne\[9\] is nan; it must be a finite"),
        (fit_power, lambda flops, ne: (flops * [0, *[1] * 17], ne), r"flops\[0\] is 0\.0; it must be a finite number"),
        (fit_power, lambda flops, ne: (flops, ne * [1, -1, *[1] * 16]), r"ne\[1\] is -0\.\d+; it must be a finite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(fit, change, message):
    flops, ne = change(FLOPS, 0.82 - 0.02 * DECADES)
    with pytest.raises(ValueError, match=message):
        fit(flops, ne)
