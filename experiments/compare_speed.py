"""Speed of a comparison's systems, all in turn: ``python -m experiments.compare_speed leaderboard_movielens``.

Runs of `experiments.compare` are of many hours, beside whatever else the machine did, so their examples/s tell little
of one system beside another. Here all rows that `experiments.train` trains take turns in one process, with whole
training steps, tables and optimizers included, of the first batches of their runs. How much faster than the first one a
system is, is the median of ratios of the same round. Rates that a comparison searches for are of no account. Nine
systems take four to six minutes on a CPU core; nothing else should run beside it.

    python -m experiments.compare_speed leaderboard_movielens --data.root ml-1m

Rows are stored together in ``experiments/results/DEVICE/NAME_speed.json`` once all are measured, with command, commit
and versions, and are not measured again: then the same command prints the table and draws the picture.
"""

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import tyro
from matplotlib.figure import Figure

from experiments.compare import Comparison, DataFlags, comparison_of, config_of
from experiments.compilation import keep_compiled
from experiments.result_rows import RESULTS, measured_in, store, stored
from experiments.step_times import RunSteps, take_turns
from kunlun_jax.data.dataset import Dataset
from kunlun_jax.data.open import open_dataset

HEADS = ("examples/s", "x the first's", "MFU", "forward FLOPs")
"""Columns: training examples a second; the ratio to the first row's, by round; the share of the machine's peak that
useful FLOPs have, three times those of a forward pass; these, per example."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of the measurement."""

    name: tyro.conf.Positional[str]
    """A file of experiments/comparisons, or the path of your own."""
    data: DataFlags = DataFlags()
    """Where the data is."""
    rounds: int = 7
    """Turns of each system; medians are told."""
    steps: int = 4
    """Steps of a turn that count, and batches that they have in turn; one step goes before them."""
    out: Path | None = None
    """JSON file of the rows; default experiments/results/DEVICE/NAME_speed.json. The picture goes beside it."""
    dirty: bool = False
    """Measure code with uncommitted changes."""

    def __post_init__(self):
        for name, least in (("rounds", 3), ("steps", 1)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")


def key_of(comparison: Comparison) -> Callable[[dict[str, Any]], tuple]:
    """What makes two rows the same: the name, so that other flags give way. Rows are in the order of the comparison."""
    order = [*comparison.rows]

    def key(row: dict[str, Any]) -> tuple:
        return order.index(row["name"]) if row["name"] in order else len(order), row["name"]

    return key


def current(rows: list[dict[str, Any]], comparison: Comparison) -> list[dict[str, Any]]:
    """The rows of systems that the comparison has, with the flags that they have there."""
    return [row for row in rows if comparison.rows.get(row["name"]) == row["flags"]]


def run(args: Arguments, comparison: Comparison, path: Path) -> None:
    """Measures all systems, unless all are stored."""
    started_in, load = measured_in(args.dirty), round(os.getloadavg()[0], 2)
    keep_compiled(args.data.cache)
    configs = {name: config_of(flags, args.data) for name, flags in comparison.rows.items()}
    opened: dict[Any, Dataset] = {}
    data = {}
    for name, config in configs.items():
        if config.data not in opened:
            opened[config.data] = open_dataset(config.data)
        data[name] = opened[config.data]
    known = {(row["name"], row["data"]) for row in current(stored(path), comparison)}
    if all((name, data[name].fingerprint) in known for name in configs):
        return
    subjects: dict[str, RunSteps] = {}
    for name, config in configs.items():
        subjects[name] = RunSteps(config, data[name], args.steps)
        print(f"{name}: compiled in {subjects[name].compile_seconds:.0f} s", file=sys.stderr)
    first = next(iter(subjects))
    limit = take_turns(subjects.values(), args.rounds, args.steps, configs[first].model.compute_dtype)
    for name, subject in subjects.items():
        row = {
            "name": name,
            "flags": comparison.rows[name],
            "data": data[name].fingerprint,
            "settings": {"rounds": args.rounds, "steps": args.steps},
            **subject.result(limit, subjects[first]),
            "environment": {**started_in, "load_average": load},
        }
        store(path, row, key_of(comparison))


def markdown(rows: list[dict[str, Any]], comparison: Comparison) -> str:
    """The `current` ones of the rows as a table."""
    lines = [f"| | {' | '.join(HEADS)} |", "|---" * (len(HEADS) + 1) + "|"]
    lines += [
        f"| {row['name']} | {row['examples_per_second']:,.0f} | {row['speed_ratio']:.2f} | {row['mfu']:.1%} "
        f"| {row['flops_per_example']:,.0f} |"
        for row in current(rows, comparison)
    ]
    return "\n".join(lines)


def drawn(rows: list[dict[str, Any]], comparison: Comparison) -> Figure:
    """Examples/s and MFU of each of the `current` rows: a bar for the median, a line from slowest to fastest round."""
    found = current(rows, comparison)
    figure = Figure(figsize=(9, 0.32 * len(found) + 1.1), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, label, of in (
        (left, "training examples/s", lambda row: row["examples_per_second"]),
        (right, "MFU of a training step, %", lambda row: 100 * row["mfu"]),
    ):
        for place, row in enumerate(found):
            rounds = row["step_seconds_all"]
            axes.barh(place, of(row), height=0.55, color="#c8553d" if place == 0 else "#2f6fb0")
            ends = [of(row) * row["step_seconds"] / seconds for seconds in (max(rounds), min(rounds))]
            axes.plot(ends, [place, place], color="#333333", linewidth=1.5)
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_yticks(range(len(found)), [row["name"] for row in found])
    left.invert_yaxis()
    return figure


def picture(rows: list[dict[str, Any]], comparison: Comparison, path: Path) -> None:
    """`drawn` as a file."""
    drawn(rows, comparison).savefig(path)


def main(arguments: list[str] | None = None) -> int:
    """Parses flags, measures, prints and draws; returns the exit code."""
    args = tyro.cli(Arguments, args=arguments, prog="experiments.compare_speed", description=__doc__)
    try:
        comparison = comparison_of(args.name)
        path = args.out or RESULTS / jax.default_backend() / f"{Path(args.name).stem}_speed.json"
        run(args, comparison, path)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = stored(path)
    print(markdown(rows, comparison))
    picture(rows, comparison, path.with_suffix(".png"))
    print(f"rows in {path}, picture in {path.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
