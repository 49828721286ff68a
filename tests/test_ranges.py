"""Every number of every config has a range, and a value outside it is refused by name."""

import dataclasses
import importlib
import inspect
import math
import pkgutil
import re
from typing import get_args, get_type_hints

import pytest

import kunlun_jax
from kunlun_jax.ranges import above, at_least, ranges, rate, within
from kunlun_jax.training.optimizer import OptimizerConfig

OWN = {
    "MeshConfig.data": "a power of two",
    "MeshConfig.fsdp": "a power of two",
    "MeshConfig.experts": "a power of two",
    "MeshConfig.processes": "divides the devices",
    "MeshConfig.process": "below processes",
    "MeshConfig.heartbeat_s": "at least 1, below the floor of ranges",
}
"""Numbers that are checked another way."""


def configs() -> list[type]:
    """The dataclasses of flags: all whose name ends in Config."""
    found = set()
    for module in pkgutil.walk_packages(kunlun_jax.__path__, "kunlun_jax."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__name__.endswith("Config"):
                found.add(value)
    return sorted(found, key=lambda kind: kind.__name__)


def numeric(kind: type) -> list[str]:
    """Fields that are numbers, numbers or None, or tuples of numbers."""
    hints = get_type_hints(kind)
    numbers = ({int}, {float}, {int, type(None)}, {float, type(None)}, {int, ...}, {float, ...})
    return [
        field.name
        for field in dataclasses.fields(kind)
        if hints[field.name] in (int, float) or set(get_args(hints[field.name])) in numbers
    ]


def test_there_are_configs():
    names = {kind.__name__ for kind in configs()}
    assert {"OptimizerConfig", "LoaderConfig", "RunConfig", "KunlunConfig", "HSTUConfig", "SyntheticConfig"} <= names
    assert {"first_queries", "head_hidden", "dropout"} <= set(
        numeric(next(kind for kind in configs() if kind.__name__ == "OneTransConfig"))
    )


@pytest.mark.parametrize("kind", configs(), ids=lambda kind: kind.__name__)
def test_every_number_has_a_range(kind):
    missing = [name for name in numeric(kind) if name not in ranges(kind) and f"{kind.__name__}.{name}" not in OWN]
    assert missing == []
    assert set(ranges(kind)) <= {field.name for field in dataclasses.fields(kind)}


RANGED = [kind for kind in configs() if ranges(kind) and not inspect.isabstract(kind)]


@pytest.mark.parametrize("kind", RANGED, ids=lambda kind: kind.__name__)
def test_a_number_out_of_range_is_refused(kind):
    """One below the range, one above it if it ends, and NaN, in every field."""
    config = kind()
    for name, allowed in ranges(kind).items():
        whole = get_type_hints(kind)[name] in (int, int | None, tuple[int, ...])
        bad = [allowed.low - 1] + ([allowed.high + 1] if allowed.high < math.inf else [])
        for value in map(int, bad) if whole else (*map(float, bad), math.nan):
            in_tuple = isinstance(getattr(config, name), tuple)
            with pytest.raises(ValueError, match=rf"\w+\.{name}(\[1\])? is {re.escape(repr(value))}; it must"):
                dataclasses.replace(config, **{name: (8, value) if in_tuple else value})


def test_what_the_message_says():
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate is -1\.0; it must be at least 0$"):
        OptimizerConfig(learning_rate=-1.0)
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate is nan; it must be a finite number$"):
        OptimizerConfig(learning_rate=math.nan)
    with pytest.raises(ValueError, match=r"optimizer\.b1 is 1\.5; it must lie in \[0, 1\)$"):
        OptimizerConfig(b1=1.5)
    with pytest.raises(ValueError, match="one must be above 0"):
        OptimizerConfig(table_initial=0.0, table_epsilon=0.0)


@pytest.mark.parametrize(
    ("allowed", "inside", "outside"),
    [
        (at_least(1), (1, 1e30), (0, 0.999, math.inf, math.nan)),
        (above(0), (1e-9,), (0, -1, math.nan)),
        (within(0, 1), (0, 1), (-0.1, 1.1)),
        (rate(), (0, 0.999), (1, -1)),
    ],
)
def test_ends(allowed, inside, outside):
    assert all(value in allowed for value in inside)
    assert not any(value in allowed for value in outside)
