"""Scaling laws: what NE falls to as a model computes more, with intervals, and how two systems compare.

    log law      NE(C) = NE_0 - eta log10(C / C_0)       eta: NE gained per decade of C
    power law    NE(C) = E + A (C / C_0)^-b              E: what no size gets below

C is useful forward FLOPs per example, C_0 = 10^6. What is fitted is the mean NE of each size's seeds, not each run:
sizes stray from a law by more than chance, which more seeds do not mend. The log law is fitted by least squares, the
power law by Huber's loss of the log residuals (Hoffmann et al., arXiv 2203.15556), from many starts.

Intervals are 95%, by a studentized bootstrap: residuals of sizes, and of seeds within each size, are drawn again, the
law is fitted to each draw, and what is read off is the estimate's error in units of its own standard error. Percentiles
of the drawn estimates would be too narrow for six sizes. Tests hold how often the intervals cover the truth. A law
needs two sizes more than it has parameters; with one more, intervals of "95%" cover four times of five.

Source: the log law and scaling efficiency eta / eta_baseline, Kunlun (P, R); the power law, O.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

REFERENCE_FLOPS = 1e6
"""C_0."""
HUBER = 0.01
"""Log residuals beyond this count linearly: seeds move NE by half of it, so only a size that failed is beyond."""
LEAST_LOG, LEAST_POWER = 4, 5
"""Sizes that the laws need at least."""
LEAST_ERROR = 0.1
"""Standard errors of draws are at least so much of that of the data: with four sizes intervals would be up to hundreds
of times as wide, and cover no more often."""
DRAWS = 400
"""Draws of a bootstrap."""
TAIL = 2.5
"""Percent of draws beyond each end of an interval."""
STARTS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Exponents b that the search for the power law starts from; E and A follow by least squares."""
MOST_BENT = 5.0
"""Largest b of the search, of either sign."""
SMALL = 1e-6
"""A b of this size is a straight line."""
LEAST_NE = 1e-6
"""What a curve is taken to be where a step of the search brings it below 0."""
STEPS = 60
"""Most steps of Levenberg's and Marquardt's method; a test compares with SciPy's."""
CONVERGED = 1e-9
"""Steps that are too small to go on."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval.

    Attributes:
      value: the estimate.
      draws: what it may be, float64 ``[draws]``; inf where it is not bounded.
    """

    value: float
    draws: Float[np.ndarray, " draws"]

    @property
    def interval(self) -> tuple[float, float]:
        """Both ends; an end may be infinite."""
        # No interpolation, so that infinite draws do not make NaN of a finite neighbour.
        low, high = np.percentile(self.draws, [TAIL, 100 - TAIL], method="inverted_cdf")
        return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class LogLaw:
    """NE(C) = ne_0 - eta log10(C / C_0); `r_squared` is of the sizes' means."""

    ne_0: Estimate
    eta: Estimate
    r_squared: float

    def predict(self, flops: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
        """NE of models of these FLOPs per example."""
        return self.ne_0.value - self.eta.value * np.log10(flops / REFERENCE_FLOPS)


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """NE(C) = e + a (C / C_0)^-b; `r_squared` is of the sizes' means.

    Where the sizes do not bend to a floor, b is 0 or less, e is -inf and a is inf; so are ends of intervals.

    Attributes:
      shape: height, fall and b of `_curve`, which stay finite.
      middle: ln(C / C_0) that the height is at.
    """

    e: Estimate
    a: Estimate
    b: Estimate
    r_squared: float
    shape: Float[np.ndarray, "3"]
    middle: float

    def predict(self, flops: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
        """NE of models of these FLOPs per example."""
        return _curve(np.log(flops / REFERENCE_FLOPS) - self.middle, self.shape)[0]


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Runs by size, smallest first: log10(C / C_0), the mean NE of the seeds, and each seed's NE less it."""

    decades: np.ndarray
    mean: np.ndarray
    seeds: list[np.ndarray]


def _sizes(flops: np.ndarray, ne: np.ndarray, least: int) -> _Sizes:
    for name, values in (("flops", flops), ("ne", ne)):
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if bad.size:
            raise ValueError(f"{name}[{bad[0]}] is {values[bad[0]]}; it must be a finite number above 0")
    sizes = np.unique(flops)
    if len(sizes) < least:
        raise ValueError(f"flops holds {len(sizes)} different sizes; this law and its interval need at least {least}")
    groups = [ne[flops == size] for size in sizes]
    mean = np.array([group.mean() for group in groups])
    return _Sizes(np.log10(sizes / REFERENCE_FLOPS), mean, [g - m for g, m in zip(groups, mean, strict=True)])


def _drawn(
    sizes: _Sizes, residuals: np.ndarray, fitted: np.ndarray, rng: np.random.Generator
) -> Float[np.ndarray, "draws sizes"]:
    """Means of sizes as they might have come out: of other residuals of sizes, and of other seeds in each size."""
    drawn = fitted + rng.choice(residuals, (DRAWS, len(fitted)))
    for place, seeds in enumerate(sizes.seeds):
        if len(seeds) > 1:
            # Deviations from a mean of s seeds are too small by this factor.
            wider = seeds * np.sqrt(len(seeds) / (len(seeds) - 1))
            drawn[:, place] += rng.choice(wider, (DRAWS, len(seeds))).mean(axis=1)
    return drawn


def _studentized(value: np.ndarray, error: np.ndarray, drawn: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """What parameters ``[parameters]`` may be, ``[draws, parameters]``.

    The error of each draw, in units of the standard error that was found in it, is taken off in those of the data.
    """
    # A draw of few, nearly equal residuals moves a curve and leaves next to nothing to tell its error by.
    units = np.maximum(errors, LEAST_ERROR * error)
    # Without any residual there is no error, and no unit either.
    pivots = np.divide(drawn - value, units, out=np.zeros_like(drawn), where=units > 0)
    return value - error * pivots


def efficiency(system: LogLaw, baseline: LogLaw) -> Estimate:
    """Scaling efficiency eta / eta of the baseline: how much more NE a decade of FLOPs gains.

    The two systems' runs are independent; that their draws are, too, takes fits with different seeds. Where the
    baseline gains nothing, the ratio is infinite, and if that is so in more than a fortieth of the draws, the interval
    has no upper end.
    """
    with np.errstate(divide="ignore"):
        draws = np.where(baseline.eta.draws > 0, system.eta.draws / baseline.eta.draws, np.inf)
    return Estimate(system.eta.value / baseline.eta.value if baseline.eta.value > 0 else np.inf, draws)


def _explained(mean: np.ndarray, fitted: np.ndarray) -> float:
    total = float(((mean - mean.mean()) ** 2).sum())
    return 1 - float(((mean - fitted) ** 2).sum()) / total if total else 1.0


def _line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of y ``[..., sizes]`` on x: (height at 0, fall), and their standard errors, ``[..., 2]``."""
    centred = x - x.mean()
    spread = (centred**2).sum()
    slope = y @ centred / spread
    height = y.mean(axis=-1) - slope * x.mean()
    rest = y - height[..., None] - slope[..., None] * x
    noise = np.sqrt((rest**2).sum(axis=-1) / (len(x) - 2))
    errors = noise[..., None] * np.sqrt([1 / len(x) + x.mean() ** 2 / spread, 1 / spread])
    return np.stack([height, -slope], axis=-1), errors


def fit_log(flops: Float[np.ndarray, " runs"], ne: Float[np.ndarray, " runs"], *, seed: int = 0) -> LogLaw:
    """The log law of a system's runs.

    Args:
      flops: useful forward FLOPs per example; runs of one size have exactly the same.
      ne: of a split.
      seed: of the bootstrap; another for each system.

    Raises:
      ValueError: fewer than four sizes, or a number that is not finite or not above 0.
    """
    sizes = _sizes(flops, ne, LEAST_LOG)
    x, y = sizes.decades, sizes.mean
    value, error = _line(x, y)
    fitted = value[0] - value[1] * x
    leverage = 1 / len(x) + (x - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()
    residuals = (y - fitted) / np.sqrt(1 - leverage)
    drawn, errors = _line(x, _drawn(sizes, residuals - residuals.mean(), fitted, np.random.default_rng(seed)))
    ne_0, eta = _studentized(value, error, drawn, errors).T
    return LogLaw(Estimate(float(value[0]), ne_0), Estimate(float(value[1]), eta), _explained(y, fitted))


def _curve(x: np.ndarray, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """NE ``[..., sizes]`` at x = ln(C / C_0) less its middle, and its slopes in `shape`, ``[..., sizes, 3]``.

    NE = height - fall (1 - e^-bx) / b, which for b > 0 is the power law with E = height - fall / b. A straight line,
    where E and A are infinite, is b = 0 here, and a search passes through it.
    """
    height, fall, b = (shape[..., i, None] for i in range(3))
    b = np.where(np.abs(b) < SMALL, SMALL, b)
    bent = -np.expm1(-b * x) / b
    slopes = np.broadcast_arrays(1.0, -bent, -fall * (x * np.exp(-b * x) - bent) / b)
    return height - fall * bent, np.stack(slopes, axis=-1)


def _loss(rest: np.ndarray) -> np.ndarray:
    """Huber's loss of residuals, summed over sizes."""
    size = np.abs(rest)
    return np.where(size <= HUBER, size**2 / 2, HUBER * (size - HUBER / 2)).sum(axis=-1)


def _rest(x: np.ndarray, y: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Residuals of log NE."""
    return y - np.log(np.maximum(_curve(x, shape)[0], LEAST_NE))


def _normal(x: np.ndarray, y: np.ndarray, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradient and Gauss-Newton matrix of Huber's loss."""
    value, slopes = _curve(x, shape)
    value = np.maximum(value, LEAST_NE)
    rest, slopes = y - np.log(value), slopes / value[..., None]
    weighted = slopes * (HUBER / np.maximum(np.abs(rest), HUBER))[..., None]
    return np.einsum("...sp,...s->...p", weighted, rest), np.einsum("...sp,...sq->...pq", weighted, slopes)


def _descend(x: np.ndarray, y: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Shapes ``[..., 3]`` of the least loss near `shape`, by Levenberg's and Marquardt's method, all at once."""
    damping = np.full(shape.shape[:-1], 1e-3)
    best = _loss(_rest(x, y, shape))
    for _ in range(STEPS):
        gradient, matrix = _normal(x, y, shape)
        scale = np.einsum("...pp->...p", matrix) * damping[..., None] + 1e-12
        step = np.linalg.solve(matrix + scale[..., None] * np.eye(3), gradient[..., None])[..., 0]
        if np.abs(step).max() < CONVERGED:
            break
        tried = shape + np.clip(step, -1, 1)
        tried[..., 2] = np.clip(tried[..., 2], -MOST_BENT, MOST_BENT)
        loss = _loss(_rest(x, y, tried))
        better = loss <= best
        shape, best = np.where(better[..., None], tried, shape), np.where(better, loss, best)
        damping = np.clip(np.where(better, damping / 5, damping * 4), 1e-12, 1e6)
    return shape


def _starts(x: np.ndarray, ne: np.ndarray) -> np.ndarray:
    """Shapes ``[starts, 3]``: for each exponent height and fall of least squares."""
    found = []
    for b in STARTS:
        slopes = np.stack([np.ones_like(x), np.expm1(-b * x) / b], axis=1)
        found.append([*np.linalg.lstsq(slopes, ne, rcond=None)[0], b])
    return np.array(found)


def _errors(x: np.ndarray, y: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Standard errors of shapes, ``[..., 3]``."""
    rest, (_, matrix) = _rest(x, y, shape), _normal(x, y, shape)
    squares = np.minimum(rest**2, HUBER * np.abs(rest)).sum(axis=-1) / (len(x) - 3)
    # A parameter that nothing depends on gets a large error, not none.
    inverse = np.linalg.inv(matrix + 1e-12 * np.eye(3))
    return np.sqrt(squares[..., None] * np.einsum("...pp->...p", inverse))


def _parameters(shape: np.ndarray, middle: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """E, A and b ``[...]`` of shapes."""
    height, fall, b = (shape[..., i] for i in range(3))
    bends = b > SMALL
    falls = fall / np.where(bends, b, 1.0)
    with np.errstate(over="ignore"):  # a draw far out has an A beyond float64
        a = falls * np.exp(b * middle)
    return np.where(bends, height - falls, -np.inf), np.where(bends, a, np.inf), b


def fit_power(flops: Float[np.ndarray, " runs"], ne: Float[np.ndarray, " runs"], *, seed: int = 0) -> PowerLaw:
    """The power law of a system's runs; arguments as `fit_log`.

    Raises:
      ValueError: fewer than five sizes, or a number that is not finite or not above 0.
    """
    sizes = _sizes(flops, ne, LEAST_POWER)
    middle = float(sizes.decades.mean() * np.log(10))
    x, y = sizes.decades * np.log(10) - middle, np.log(sizes.mean)
    starts = _descend(x, y, _starts(x, sizes.mean))
    shape = starts[np.argmin(_loss(_rest(x, y, starts)))]
    rest = _rest(x, y, shape)
    residuals = rest * np.sqrt(len(x) / (len(x) - 3))
    relative = dataclasses.replace(
        sizes, seeds=[seeds / mean for seeds, mean in zip(sizes.seeds, sizes.mean, strict=True)]
    )
    again = _drawn(relative, residuals - residuals.mean(), y - rest, np.random.default_rng(seed))
    drawn = _descend(x, again, np.broadcast_to(shape, (DRAWS, 3)))
    draws = _studentized(shape, _errors(x, y, shape), drawn, _errors(x, again, drawn))
    e, a, b = (
        Estimate(float(value), maybe)
        for value, maybe in zip(_parameters(shape, middle), _parameters(draws, middle), strict=True)
    )
    return PowerLaw(e, a, b, _explained(sizes.mean, np.exp(y - rest)), shape, middle)
