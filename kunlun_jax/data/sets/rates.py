"""Running rates without leaks: what was known about a user, an item or a pair strictly before a moment.

Everything is counted in whole numbers. A sum over earlier rows is then exact, so a later outcome cannot reach an
earlier row, not even through rounding, and equal inputs give equal bits.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Float64, Int64

UNIT = 1000
"""An outcome is a whole number of thousandths in ``0 .. UNIT``: a click is UNIT, half a video watched UNIT / 2."""

_FIRST_GUESS = 0.5  # the rate of everything before the first row of the log


@dataclasses.dataclass(frozen=True)
class Before:
    """What was known at each requested moment."""

    count: Int64[np.ndarray, " moments"]  # rows of the entity
    sums: Int64[np.ndarray, "moments outcomes"]
    last_ms: Int64[np.ndarray, " moments"]  # time of the newest of these rows, -1 where there is none


class RunningSums:
    """Sums over the rows of an entity that are strictly earlier than a moment.

    Args:
      entity: int64 ``[rows]``, whom or what a row belongs to; any number.
      time_ms: int64 ``[rows]``, milliseconds since the epoch, in any order.
      values: int64 ``[rows, outcomes]``, what is summed.
    """

    def __init__(
        self,
        entity: Int64[np.ndarray, " rows"],
        time_ms: Int64[np.ndarray, " rows"],
        values: Int64[np.ndarray, "rows outcomes"],
    ):
        self._entities, code = np.unique(entity, return_inverse=True)
        self._times = np.unique(time_ms)
        # A row's place in one sorted line: entity first, time inside. Ties keep the order of the log.
        key = self._key(code, np.searchsorted(self._times, time_ms))
        order = np.argsort(key, kind="stable")
        self._keys = key[order]
        self._row_times = time_ms[order]
        self._totals = np.zeros((len(order) + 1, values.shape[1]), np.int64)
        np.cumsum(values[order], axis=0, out=self._totals[1:])

    def _key(self, code: np.ndarray, rank: np.ndarray | int) -> np.ndarray:
        return code.astype(np.int64) * (len(self._times) + 1) + rank

    def before(
        self,
        entity: Int64[np.ndarray, " moments"],
        time_ms: Int64[np.ndarray, " moments"],
        since_ms: Int64[np.ndarray, " moments"] | None = None,
        newest: int | None = None,
    ) -> Before:
        """Rows of `entity` strictly before `time_ms`; only those from `since_ms` on, or only the `newest` ones."""
        if len(self._entities) == 0:
            code, known = np.zeros(len(entity), np.int64), np.zeros(len(entity), bool)
        else:
            code = np.minimum(np.searchsorted(self._entities, entity), len(self._entities) - 1)
            known = self._entities[code] == entity
        stop = np.searchsorted(self._keys, self._key(code, np.searchsorted(self._times, time_ms)))
        first = 0 if since_ms is None else np.searchsorted(self._times, since_ms)
        start = np.minimum(np.searchsorted(self._keys, self._key(code, first)), stop)
        if newest is not None:
            start = np.maximum(start, stop - newest)
        start = np.where(known, start, stop)
        last = np.full(len(entity), -1, np.int64)
        some = stop > start
        last[some] = self._row_times[stop[some] - 1]
        return Before(stop - start, self._totals[stop] - self._totals[start], last)


@dataclasses.dataclass(frozen=True)
class Rate:
    """One family of running rates.

    Attributes:
      name: prefix of its features.
      entity: int64 ``[rows of the log]``, whose rows are counted together; pairs as one number (`pair`).
      outcomes: names of the outcomes of the log to rate.
      parent: name of an earlier family, towards whose rate of the same outcome rates are shrunk; empty for none.
      newest: count only this many newest rows of the entity; None counts all.
      is_feature: False for a family that is only a parent.
    """

    name: str
    entity: Int64[np.ndarray, " rows"]
    outcomes: tuple[str, ...]
    parent: str = ""
    newest: int | None = None
    is_feature: bool = True


class RunningRates:
    """Smoothed rates of a log as dense features.

    The rate of an outcome is ``(sum + strength * prior) / (count + strength)``. The prior is the rate of the parent
    family at the same moment, so it also runs and knows nothing later. Features, brought to about unit range by fixed
    transforms: ``<name>_<outcome>`` is the logit of the rate, ``<name>_count`` is log(1 + count) / 5.

    Args:
      time_ms: int64 ``[rows]``, times of the log.
      outcomes: name -> int64 ``[rows]`` in ``0 .. UNIT``.
      families: parents before their children.
      strength: rows that the prior is worth.
    """

    def __init__(
        self,
        time_ms: Int64[np.ndarray, " rows"],
        outcomes: Mapping[str, np.ndarray],
        families: Sequence[Rate],
        strength: float,
    ):
        if not strength > 0:
            raise ValueError(f"strength of the smoothing is {strength}; it must be positive")
        for name, values in outcomes.items():
            if len(values) and (values.min() < 0 or values.max() > UNIT):
                raise ValueError(
                    f"outcome {name!r} ranges {values.min()} .. {values.max()}; it must lie in 0 .. {UNIT}"
                )
        self._families = tuple(families)
        self._strength = strength
        self.sums: dict[str, RunningSums] = {}
        for family in self._families:
            if family.parent and family.parent not in self.sums:
                raise ValueError(f"rate {family.name!r} names parent {family.parent!r}; earlier are {list(self.sums)}")
            values = np.stack([outcomes[outcome] for outcome in family.outcomes], axis=1)
            self.sums[family.name] = RunningSums(family.entity, time_ms, values)

    def features(
        self, rows: Int64[np.ndarray, " picked"], as_of_ms: Int64[np.ndarray, " picked"]
    ) -> dict[str, np.ndarray]:
        """Features of the log's rows `rows` from what happened strictly before `as_of_ms`; float32 each."""
        features: dict[str, np.ndarray] = {}
        rates: dict[tuple[str, str], np.ndarray] = {}
        for family in self._families:
            before = self.sums[family.name].before(family.entity[rows], as_of_ms, newest=family.newest)
            for i, outcome in enumerate(family.outcomes):
                prior = rates.get((family.parent, outcome), _FIRST_GUESS)
                rate = smoothed(before.sums[:, i] / UNIT, before.count, prior, self._strength)
                rates[family.name, outcome] = rate
                if family.is_feature:
                    features[f"{family.name}_{outcome}"] = logit(rate)
            if family.is_feature:
                features[f"{family.name}_count"] = log_count(before.count)
        return features


def pair(left: Int64[np.ndarray, " rows"], right: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
    """One number for two ids, both nonnegative."""
    return left * (int(right.max(initial=0)) + 1) + right


def smoothed(
    total: Float64[np.ndarray, " rows"],
    count: Int64[np.ndarray, " rows"],
    prior: Float64[np.ndarray, " rows"] | float,
    strength: float,
) -> Float64[np.ndarray, " rows"]:
    """Mean of `count` outcomes that sum to `total`, with `strength` more of them at `prior`."""
    return (total + strength * prior) / (count + strength)


def logit(rate: Float64[np.ndarray, " rows"]) -> Float32[np.ndarray, " rows"]:
    """log(rate / (1 - rate)), cut at rates of 1e-3 and 1 - 1e-3, which keeps it within 7 of zero."""
    rate = np.clip(rate, 1e-3, 1 - 1e-3)
    return np.log(rate / (1 - rate)).astype(np.float32)


def log_count(count: Int64[np.ndarray, " rows"] | Float64[np.ndarray, " rows"]) -> Float32[np.ndarray, " rows"]:
    """log(1 + count) / 5, about 1 at 150 and 2 at 22,000."""
    return (np.log1p(count) / 5).astype(np.float32)


def log_gap(time_ms: Int64[np.ndarray, " rows"], last_ms: Int64[np.ndarray, " rows"]) -> Float32[np.ndarray, " rows"]:
    """log(1 + seconds since `last_ms`) / 10, which is 1.48 for a month; 2 where there was no last time (-1)."""
    seconds = np.where(last_ms >= 0, time_ms - last_ms, 0) / 1000
    return np.where(last_ms >= 0, np.log1p(seconds) / 10, 2.0).astype(np.float32)


def log_scaled(values: Float64[np.ndarray, " rows"]) -> Float32[np.ndarray, " rows"]:
    """log(1 + value) / 10, 0 where the value is NaN, which stands for unknown."""
    return (np.log1p(np.nan_to_num(values)) / 10).astype(np.float32)


def first_times(entity: Int64[np.ndarray, " rows"], time_ms: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
    """For each row, the earliest time of any row of its entity: where frozen histories and rates are cut."""
    _, code = np.unique(entity, return_inverse=True)
    first = np.full(code.max(initial=-1) + 1, np.iinfo(np.int64).max, np.int64)
    np.minimum.at(first, code, time_ms)
    return first[code]
