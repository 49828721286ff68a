"""Which runs the scaling law is of, which are still to be done, and about how long they take.

A budget says which systems, sizes and seeds. Learning rates come from runs, too: seed 0 of each system is trained at
two sizes at every rate of the budget; the one of least NE on "valid" is that size's. If it is at an end of those that
were tried, a third of it, or three times as much, is tried next. The logarithm of the rate of the other sizes lies on
the line through these two, by number of size, and stays what it is beyond them; the rate is rounded to two digits.
"""

import dataclasses
import functools
import math
import shlex
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flax import nnx

from experiments.result_rows import RESULTS, diverged, stored
from experiments.scaling_families import FAMILIES, MOVIELENS, SIZES
from experiments.train import parse
from kunlun_jax.data.dataset import Dataset
from kunlun_jax.data.open import resolve
from kunlun_jax.flops import total_flops
from kunlun_jax.training.config import TrainConfig
from kunlun_jax.training.run import sample_lengths

Data = Literal["synthetic", "movielens"]
TUNING_SEED = 0
FILES: dict[Data, str] = {"synthetic": "scaling_law", "movielens": "scaling_law_movielens"}
"""Name of the file of rows."""
FARTHEST = (1e-4, 3e-2)
"""Rates beyond which none is tried."""
BASELINE = "interformer"
"""What scaling efficiency is relative to, as in the paper."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """What is run.

    Attributes:
      systems: names of families.
      sizes: numbers of sizes, 0 the smallest.
      seeds: of parameters; the first is that of the search for rates.
      rates: peak rates of Adam that are tried first, smallest first; a single one is taken as it is.
      tuned: the two sizes at which they are.
      flags: of `experiments.train`, by data set, for every run.
      minutes: of one call, unless it says otherwise.
    """

    systems: tuple[str, ...]
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    tuned: tuple[int, int]
    flags: dict[Data, str]
    minutes: float


_ALL = tuple(range(SIZES))
_RATES = (1e-3, 3e-3, 9e-3)
# 150,000 rows of either: preset kunlun/small's whole stream, and a quarter of MovieLens' training rows, drawn by the
# seed: the earliest quarter would leave most test rows to users that no model has seen, and since the split is drawn at
# random, too, the order of time would only fill batches with the visits of a few users, which was worse (LOG.md).
_ROWS: dict[Data, str] = {"synthetic": "", "movielens": "--loader.shuffle global --run.max-steps 586"}
_TINY = (
    "--loader.batch-size 32 --run.log-every 3 --data.train-rows 200 --data.valid-rows 70 --data.test-rows 70 "
    "--data.users 60 --data.items-per-brand 2 --data.brands-per-topic 2 --data.impressions-per-day 0.03 "
    "--model.skip-events impression purchase"
)
BUDGETS = {
    "tiny": Budget(("wukong", "din"), (0, 1), (0,), (3e-3,), (0, 1), {"synthetic": _TINY}, 5),
    "cpu": Budget(tuple(FAMILIES), _ALL, (0, 1, 2), _RATES, (1, 4), _ROWS, 15),
    "gpu": Budget(("kunlun", BASELINE), _ALL, (0, 1, 2), _RATES, (1, 4), _ROWS, 8.5),
}


def check_data(budget: str, data: Data, root: Path | None) -> None:
    """Refuses data that a budget does not have, and a folder that is missing or of no use.

    Raises:
      ValueError: it is so.
    """
    if (data == "movielens") != (root is not None):
        raise ValueError(
            f"data is {data!r} and root {str(root)!r}; movielens needs the folder of ml-1m as root, and synthetic has "
            "no files"
        )
    if data not in BUDGETS[budget].flags:
        raise ValueError(f"budget {budget!r} is of the synthetic world alone; data is {data!r}")


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run; its rate is None as long as the search for rates has not come so far."""

    system: str
    size: int
    rate: float | None
    seed: int

    def flags(self, budget: Budget, data: Data) -> str:
        """Preset and flags of `experiments.train`; a rate that is not known is left to the preset."""
        rate = "" if self.rate is None else f"--optimizer.learning-rate {self.rate:g}"
        own = MOVIELENS[self.system] if data == "movielens" else ""
        return " ".join(part for part in (FAMILIES[self.system][self.size], own, budget.flags[data], rate) if part)

    def config(self, budget: Budget, data: Data, root: Path | None, cache: Path | None) -> TrainConfig:
        """What `flags` say, on the data set in the folder `root`, if it has one, prepared in the folder `cache`."""
        where = [
            part
            for name, value in (("--data.root", root), ("--data.cache", cache))
            if value is not None
            for part in (name, str(value))
        ]
        _, config = parse([*shlex.split(self.flags(budget, data)), *where])
        return dataclasses.replace(config, data=resolve(config.data))

    def row(self, budget: Budget, data: Data, fingerprint: str) -> dict[str, Any]:
        """What of a row is known before it is run."""
        return {
            "name": f"{self.system} {self.size}, rate {self.rate:g}",
            **dataclasses.asdict(self),
            "flags": self.flags(budget, data),
            "data": fingerprint,
        }


def key_of(row: dict[str, Any]) -> tuple:
    """What makes two rows the same measurement, in the order of the file."""
    return [*FAMILIES].index(row["system"]), row["size"], row["rate"], row["seed"], row["flags"], row["data"]


def key_of_speed(row: dict[str, Any]) -> tuple:
    """The same of a row of `experiments.scaling_speed`; a model that a family has no longer gives way to the new."""
    return row["data"], row["size"], [*FAMILIES].index(row["system"])


def current(
    rows: list[dict[str, Any]], budget: Budget, data: Data, fingerprint: str | None = None
) -> list[dict[str, Any]]:
    """The rows of the plan as it is now: a family, a budget or a world may have changed since a row was measured.

    Args:
      rows: of a file.
      budget: whose plan it is.
      data: that it is run on.
      fingerprint: of the data set that rows must be of; None: that of them all.

    Raises:
      ValueError: `fingerprint` is None, and the rows are of several data sets.
    """
    found = [
        row
        for row in rows
        if row["size"] < SIZES
        and row["flags"] == Planned(row["system"], row["size"], row["rate"], row["seed"]).flags(budget, data)
        and fingerprint in (None, row["data"])
    ]
    if len(several := sorted({row["data"] for row in found})) > 1:
        raise ValueError(f"the rows are of {len(several)} data sets, {several}; keep those of one in the file")
    return found


def search(
    budget: Budget, rows: list[dict[str, Any]], system: str, size: int
) -> tuple[tuple[float, ...], float | None]:
    """The rates to be tried at a size, smallest first, and the best; None as long as one of them has no `current` row.

    Raises:
      ValueError: the run diverged at every rate.
    """
    found = {
        row["rate"]: math.inf if diverged(row) else row["splits"]["valid"]["ne"]
        for row in rows
        if (row["system"], row["size"], row["seed"]) == (system, size, TUNING_SEED)
    }
    rates = budget.rates
    while all(rate in found for rate in rates):
        best = min(rates, key=lambda rate: found[rate])
        smaller, larger = (float(f"{end:.1g}") for end in (rates[0] / 3, rates[-1] * 3))
        if len(rates) > 1 and best == rates[0] and smaller >= FARTHEST[0]:
            rates = (smaller, *rates)
        elif len(rates) > 1 and best == rates[-1] and larger <= FARTHEST[1]:
            rates = (*rates, larger)
        elif math.isinf(found[best]):
            raise ValueError(f"{system}, size {size}: the run diverged at every rate of {rates}")
        else:
            return rates, best
    return rates, None


def best_rate(budget: Budget, rows: list[dict[str, Any]], system: str, size: int) -> float | None:
    """The rate of least NE on "valid" at a size, of `current` rows; None until the search has ended."""
    return search(budget, rows, system, size)[1]


def rate_of(budget: Budget, rows: list[dict[str, Any]], system: str, size: int) -> float | None:
    """The rate of a size by the rule above; None until both tuned sizes have theirs."""
    first, last = (best_rate(budget, rows, system, tuned) for tuned in budget.tuned)
    if first is None or last is None:
        return None
    if size in budget.tuned:
        return (first, last)[budget.tuned.index(size)]
    return float(f"{math.exp(np.interp(size, budget.tuned, np.log([first, last]))):.2g}")


def planned(budget: Budget, rows: list[dict[str, Any]]) -> Iterator[Planned]:
    """All runs: the search for rates, then the sizes, each seed of all before the next. What is both comes once."""
    for size in budget.tuned:
        for system in budget.systems:
            for rate in search(budget, rows, system, size)[0]:
                yield Planned(system, size, rate, TUNING_SEED)
    for seed in budget.seeds:
        for size in budget.sizes:
            if (size, seed) not in [(tuned, TUNING_SEED) for tuned in budget.tuned]:
                for system in budget.systems:
                    yield Planned(system, size, rate_of(budget, rows, system, size), seed)


def missing(budget: Budget, rows: list[dict[str, Any]], data: Data, fingerprint: str) -> list[Planned]:
    """What of `planned` has no row yet; rows that are not `current` do not count."""
    rows = current(rows, budget, data, fingerprint)
    known = set(map(key_of, rows))
    return [
        run
        for run in planned(budget, rows)
        if run.rate is None or key_of(run.row(budget, data, fingerprint)) not in known
    ]


def families(budget: Budget, rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """System -> of `current` rows those that its law is of, at the rates of the rule; runs that diverged, too."""
    rates = {(system, size): rate_of(budget, rows, system, size) for system in budget.systems for size in budget.sizes}
    found = {
        system: [row for row in rows if row["system"] == system and row["rate"] == rates.get((system, row["size"]))]
        for system in budget.systems
    }
    return {system: group for system, group in found.items() if group}


def useful_flops(config: TrainConfig, dataset: Dataset) -> float:
    """Useful forward FLOPs per example of a run, counted without building it."""
    model = nnx.eval_shape(lambda: config.model.build(dataset.schema, base_rate=dataset.p_train, rngs=nnx.Rngs(0)))
    return total_flops(model.parts(sample_lengths(dataset, config)))


@functools.cache
def _speed(system: str) -> tuple[float, float]:
    """Seconds a useful forward FLOP takes in training, and seconds beside training, of the system's stored row."""
    row = next(row for row in stored(RESULTS / "cpu" / "systems.json") if row["name"] == system)
    per_example = 1 / row["examples_per_second"]
    _, config = parse(shlex.split(row["flags"]))
    training = row["steps"] * config.loader.batch_size * per_example
    return per_example / row["flops_per_example"], row["seconds"] - training


def seconds(run: Planned, budget: Budget, data: Data, rows: list[dict[str, Any]], dataset: Dataset) -> float:
    """About how long a run takes on two CPU cores: as others of its size did, if there are any.

    Else from the row of its system in ``results/cpu/systems.json``: training in proportion to useful FLOPs, and what
    that row took beside its training (compiling, evaluating).
    """
    same = [
        row["seconds"] for row in rows if (row["system"], row["size"]) == (run.system, run.size) and not diverged(row)
    ]
    if same:
        return statistics.fmean(same)
    per_flop, beside = _speed(run.system)
    _, config = parse(shlex.split(run.flags(budget, data)))
    batch = config.loader.batch_size
    steps = config.run.max_steps or math.ceil(len(dataset.split("train")) / batch)
    return steps * batch * useful_flops(config, dataset) * per_flop + beside
