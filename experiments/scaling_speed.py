"""Speed of the scaling law's models, all systems in turn: ``python -m experiments.scaling_speed``.

`experiments.scaling_law` says what a decade of FLOPs gains; how many of them a machine does in a second is the other
factor (P). Its own runs cannot tell, which are of many days and beside other work. So here the systems of one size take
turns in one process, with whole training steps, tables and optimizer included, of the first batches of their runs. How
much more of the machine a system uses than InterFormer is a ratio of steps of the same round, and the median is told.

    --budget tiny   two sizes of Wukong and DIN, to see that it works: a minute on a CPU core
    --budget cpu    six sizes of five systems, 16 minutes a data set on a CPU core that has nothing else to do
    --budget gpu    six sizes of Kunlun and InterFormer; no GPU has run it yet

``--data movielens --root ml-1m`` measures the models of the law on MovieLens. Nothing else should run beside it. The
systems of a size are stored together in ``experiments/results/DEVICE/scaling_speed.json`` as soon as they are measured,
the largest size first, and are not measured again: the same command goes on with the next. At its end a call prints and
draws what there is, examples/s and MFU by size, and NE, by the rows of the law, over the time that an example takes.
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import tyro

from experiments import scaling_speed_report
from experiments.compilation import keep_compiled
from experiments.result_rows import RESULTS, measured_in, store, stored
from experiments.scaling_plan import BASELINE, BUDGETS, Data, Planned, check_data, key_of_speed
from experiments.step_times import RunSteps, take_turns
from kunlun_jax.data.dataset import Dataset
from kunlun_jax.data.open import open_dataset


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of the measurement."""

    budget: Literal["tiny", "cpu", "gpu"] = "cpu"
    """Whose systems and sizes are measured, as above."""
    data: Data = "synthetic"
    """The rows that steps are of."""
    sizes: tuple[int, ...] = ()
    """Numbers of sizes, 0 the smallest; default: all of the budget."""
    root: Path | None = None
    """Folder of MovieLens-1M; for --data movielens alone."""
    cache: Path | None = None
    """Folder for prepared data and compiled programs; default KUNLUN_CACHE, else ~/.cache/kunlun_jax."""
    rounds: int = 7
    """Turns of each system; medians are told."""
    steps: int = 4
    """Steps of a turn that count, and batches that they have in turn; one step goes before them."""
    out: Path | None = None
    """JSON file of the rows; default experiments/results/DEVICE/scaling_speed.json, and runs/scaling_speed_tiny.json
    for tiny. The picture goes beside it."""
    dirty: bool = False
    """Measure code with uncommitted changes."""

    def __post_init__(self):
        check_data(self.budget, self.data, self.root)
        sizes = BUDGETS[self.budget].sizes
        if unknown := sorted({*self.sizes} - {*sizes}):
            raise ValueError(f"sizes names {unknown}; budget {self.budget!r} has {list(sizes)}")
        for name, least in (("rounds", 3), ("steps", 1)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")

    @property
    def path(self) -> Path:
        """The file of rows."""
        usual = RESULTS / jax.default_backend() / "scaling_speed.json"
        return self.out or (Path("runs/scaling_speed_tiny.json") if self.budget == "tiny" else usual)


def measure(args: Arguments, size: int, dataset: Dataset) -> list[dict[str, Any]]:
    """The rows of one size, without their environment."""
    budget = BUDGETS[args.budget]
    subjects: dict[Planned, RunSteps] = {}
    for system in budget.systems:
        model = Planned(system, size, None, 0)
        config = model.config(budget, args.data, args.root, args.cache)
        subjects[model] = RunSteps(config, dataset, args.steps)
        print(f"{system} {size}: compiled in {subjects[model].compile_seconds:.0f} s", file=sys.stderr)
    limit = take_turns(subjects.values(), args.rounds, args.steps, config.model.compute_dtype)
    baseline = next((subject for model, subject in subjects.items() if model.system == BASELINE), None)
    return [
        {
            "name": f"{model.system} {size}, {args.data}",
            "system": model.system,
            "size": size,
            "flags": model.flags(budget, args.data),
            "data": dataset.fingerprint,
            "settings": {"rounds": args.rounds, "steps": args.steps},
            **subject.result(limit, baseline),
        }
        for model, subject in subjects.items()
    ]


def run(args: Arguments) -> None:
    """Measures the sizes of which a system is not stored yet."""
    budget = BUDGETS[args.budget]
    keep_compiled(args.cache)
    started_in = measured_in(args.dirty)
    first = Planned(budget.systems[0], 0, None, 0)
    dataset = open_dataset(first.config(budget, args.data, args.root, args.cache).data)
    for size in sorted(args.sizes or budget.sizes, reverse=True):
        known = {(row["flags"], row["data"]) for row in stored(args.path)}
        models = [Planned(system, size, None, 0) for system in budget.systems]
        if all((model.flags(budget, args.data), dataset.fingerprint) in known for model in models):
            continue
        load = round(os.getloadavg()[0], 2)
        for row in measure(args, size, dataset):
            store(args.path, {**row, "environment": {**started_in, "load_average": load}}, key_of_speed)


def main(arguments: list[str] | None = None) -> int:
    """Parses flags, measures what is missing, prints and draws; returns the exit code."""
    args = tyro.cli(Arguments, args=arguments, prog="experiments.scaling_speed", description=__doc__)
    try:
        run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows, budget = stored(args.path), BUDGETS[args.budget]
    print(scaling_speed_report.markdown(rows, budget))
    scaling_speed_report.picture(rows, budget, args.path.with_suffix(".png"))
    print(f"rows in {args.path}, picture in {args.path.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
