"""Times of a data set: any unit comes in, milliseconds go on, and what no log can mean is refused.

A log in seconds that is read as milliseconds lies in January 1970, before every request, so all its events would be
history and clicks of the future would be known. Hence times are held to the years in which there are such logs, and
the ranges of splits and events to each other.
"""

import dataclasses
import datetime

import numpy as np
import pyarrow as pa

from kunlun_jax.data.parquet.files import Layout
from kunlun_jax.data.parquet.report import Report
from kunlun_jax.data.schema import Schema, TimeUnit

FIRST_TIME_MS = 631_152_000_000
"""1990-01-01: no log of clicks is older."""
LAST_TIME_MS = (2**32 - 1) * 1000 + 999
"""2106-02-07: request times are held as uint32 seconds."""
_PER_SECOND: dict[TimeUnit, int] = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_NAMES: dict[TimeUnit, str] = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


def raw_times(array: pa.Array, schema: Schema) -> tuple[np.ndarray, TimeUnit]:
    """The numbers of a column of times without nulls, int64 or, of such a column, uint64; and their unit.

    A column of timestamps has its own unit, and whatever its zone counts from 1970-01-01 UTC; one without a zone is
    taken for UTC. Integers are of the schema's `time_unit`.
    """
    if pa.types.is_timestamp(array.type):
        return array.cast(pa.int64()).to_numpy(zero_copy_only=False), array.type.unit
    values = array.to_numpy(zero_copy_only=False)
    # What does not fit int64 is shown as it is before it is refused.
    return values if values.dtype == np.uint64 else values.astype(np.int64), schema.time_unit


def bounds(unit: TimeUnit, schema: Schema) -> tuple[int, int]:
    """First and last valid time in a unit, both inclusive."""
    first = 0 if "relative_times" in schema.allow else FIRST_TIME_MS
    per, milli = _PER_SECOND[unit], _PER_SECOND["ms"]
    return first * per // milli, (LAST_TIME_MS + 1) * per // milli - 1


def to_ms(times: np.ndarray, unit: TimeUnit) -> np.ndarray:
    """Milliseconds, int64; those of a finer unit are rounded down, so their order stays."""
    per, milli = _PER_SECOND[unit], _PER_SECOND["ms"]
    return times * (milli // per) if per < milli else times // (per // milli)


def what_is_right(value: int, unit: TimeUnit, schema: Schema, timestamps: bool) -> str:
    """What to say of a time that is out of bounds."""
    first, last = bounds(unit, schema)
    right = f"times are {_NAMES[unit]} since 1970-01-01 UTC, from {first} to {last}"
    for other in () if timestamps else _NAMES:
        low, high = bounds(other, schema)
        if other != unit and low <= value <= high and other != schema.time_unit:
            text = text_of(int(to_ms(np.asarray(value), other)))
            return right + f'; in {_NAMES[other]} it is {text}: if so, write "time_unit": "{other}" into schema.json'
    if value >= 0 and "relative_times" not in schema.allow and not timestamps:
        right += '; if they count from another day, write "allow": ["relative_times"] into schema.json'
    return right


def text_of(time_ms: int) -> str:
    """A time as a person reads it, UTC."""
    time = datetime.datetime(1970, 1, 1) + datetime.timedelta(milliseconds=int(time_ms))
    return time.isoformat(" ", "seconds")


@dataclasses.dataclass
class Span:
    """Of the times seen so far: the first, the last, their sum and how many there are."""

    first: int = 2**63 - 1
    last: int = -1
    total: int = 0
    count: int = 0

    def add(self, times: np.ndarray) -> None:
        """Takes in more times, in milliseconds."""
        if len(times):
            self.first, self.last = min(self.first, int(times.min())), max(self.last, int(times.max()))
            # Sums of 64 bits would overflow after some million times.
            self.total += int((times - self.first).sum()) + self.first * len(times)
            self.count += len(times)

    def __str__(self) -> str:
        return f"{text_of(self.first)} to {text_of(self.last)} UTC"


def check_order(layout: Layout, requests: dict[str, Span], report: Report) -> None:
    """Refuses a split whose requests lie before those of the training split, on average.

    Args:
      layout: where the data set is.
      requests: request times by split.
      report: takes the problems.
    """
    train = requests["train"]
    for split, span in requests.items():
        if "early_splits" in layout.schema.allow or not train.count or not span.count:
            continue
        if span.total < train.first * span.count:
            right = (
                f"its requests are of {span}, mostly before those of train, {train}; a model is judged on what comes "
                'after what it learned from: name the splits the other way, or write "allow": ["early_splits"] into '
                "schema.json"
            )
            report.add("early split", layout.root / "examples" / split, right)


def check_overlap(layout: Layout, event: str, events: Span, histories: Span, report: Report) -> None:
    """Refuses events that all lie before, or all after, every moment at which a history ends.

    Args:
      layout: where the data set is.
      event: their type.
      events: times of all of them.
      histories: `history_time_ms` of all examples.
      report: takes the problems.
    """
    if "events_apart" in layout.schema.allow or not events.count or not histories.count:
        return
    if events.first >= histories.last:
        side, so = "after", "so every history would be empty"
    elif events.last < histories.first:
        side, so = "before", "so no event is between two requests"
    else:
        return
    right = (
        f"its events are of {events}, all {side} the requests, {histories}, {so}; compare units and zones, or, if that "
        'is how it is, write "allow": ["events_apart"] into schema.json'
    )
    report.add("events apart", layout.root / "events" / event, right)
