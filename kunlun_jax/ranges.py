"""The values that the numbers of a config may have: told in one place of its class, checked when it is made.

A class has ``RANGES: ClassVar = {"learning_rate": at_least(0), "warmup": within(0, 1)}``, and its ``__post_init__``
calls ``check(self, "optimizer")``.
"""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; each end belongs to them unless it is open. NaN and infinity never do."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        """What a number must do, such as "be at least 1"."""
        if self.high == math.inf:
            return f"be {'above' if self.low_open else 'at least'} {self.low}"
        return f"lie in {'(' if self.low_open else '['}{self.low}, {self.high}{')' if self.high_open else ']'}"


def at_least(low: float) -> Range:
    """`low` and more."""
    return Range(low)


def above(low: float) -> Range:
    """More than `low`."""
    return Range(low, low_open=True)


def within(low: float, high: float) -> Range:
    """From `low` to `high`, both included."""
    return Range(low, high)


def rate() -> Range:
    """A share that is never the whole: 0 and more, below 1."""
    return Range(0, 1, high_open=True)


def ranges(kind: type) -> dict[str, Range]:
    """Field -> range, of a config's class and of those that it derives from."""
    found: dict[str, Range] = {}
    for cls in reversed(kind.__mro__):
        found |= vars(cls).get("RANGES", {})
    return found


def check(config: Any, name: str) -> None:
    """Refuses a config one of whose numbers is out of range.

    Args:
      config: a dataclass whose class has `ranges`: of a number, of each element of a tuple, and of a field that may be
        None where it is not.
      name: what flags call the config, e.g. ``"optimizer"``.

    Raises:
      ValueError: says which field, its value and its range.
    """
    for field, allowed in ranges(type(config)).items():
        value = getattr(config, field)
        for index, number in enumerate(value if isinstance(value, tuple) else (value,)):
            if number is not None and number not in allowed:
                where = f"{name}.{field}[{index}]" if isinstance(value, tuple) else f"{name}.{field}"
                wanted = allowed if math.isfinite(number) else "be a finite number"
                raise ValueError(f"{where} is {number!r}; it must {wanted}")
