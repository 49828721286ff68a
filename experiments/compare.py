"""Runs of presets side by side: ``python -m experiments.compare NAME``, NAME a file of ``experiments/comparisons``.

A comparison is a list of named sets of flags for `experiments.train`, each run for several seeds. A row is written to
``experiments/results/<device>/NAME.json`` as soon as it is done, with its command, commit, versions and the load of the
machine, and is not run again: an interrupted comparison resumes with the same command, and a complete one just prints
its table and draws its picture. To measure a row again, delete it from the file.

    python -m experiments.compare remedies --seeds 0 1
    python -m experiments.compare kuairand --data.root KuaiRand-Pure

Rows of uncommitted code are refused, since they could not be reproduced (``--dirty`` runs them, and they say so).
"""

import dataclasses
import functools
import importlib
import math
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import scipy.stats
import tyro
from matplotlib.figure import Figure

from experiments.comparisons import NAMES
from experiments.compilation import keep_compiled
from experiments.files import load
from experiments.result_rows import RESULTS, SIZES, add, diverged, measured_in, run_folder, stored, train_row
from experiments.train import parse
from kunlun_jax.data.dataset import Dataset
from kunlun_jax.data.open import DataConfig, open_dataset, resolve
from kunlun_jax.training.config import TrainConfig

Runner = Callable[[TrainConfig, int], dict[str, Any]]
"""Makes a row that is no training run, of a config (its data) and a seed: at least ``{"splits": {split: metrics}}``."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A comparison; a file of ``experiments/comparisons`` defines one as ``COMPARISON``.

    Attributes:
      rows: name -> preset and flags of `experiments.train`; the others are compared with the first.
      split, metric: what the picture and the differences show; lower is better.
      seeds: of parameters.
      others: name -> the row whose data it uses, and a model that `experiments.train` does not train.
      seedless: names of `others` that no seed changes; they are run for the first only.
      search: flags of which each row takes those with the best `metric` on "valid", tried for the first of `seeds`: the
        same budget for all. Empty: rows are as they are.
      columns: of the table, each a split and a metric, or one of `SIZES`, shown as a ratio to the first row's.
      published: name of a row -> what a paper says of it, for a last column of the table; none if empty.

    Raises:
      ValueError: a column is neither, or `published` or `seedless` names no row.
    """

    rows: Mapping[str, str]
    split: str = "test"
    metric: str = "ne"
    seeds: tuple[int, ...] = (0, 1)
    others: Mapping[str, tuple[str, Runner]] = dataclasses.field(default_factory=dict)
    seedless: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    columns: tuple[str, ...] = ("test ne",)
    published: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for column in self.columns:
            if column not in SIZES and len(column.split(" ")) != 2:
                raise ValueError(f"column {column!r} is neither a split and a metric nor one of {list(SIZES)}")
        names = [*self.rows, *self.others]
        for field, named, there in (("published", self.published, names), ("seedless", self.seedless, [*self.others])):
            unknown = [name for name in named if name not in there]
            if unknown:
                raise ValueError(f"{field} names {unknown}; there are {there}")

    def flags_of(self, name: str) -> tuple[str, ...]:
        """The flags that rows of this name may have, several where they are searched for."""
        if name in self.others:
            return (self.rows[self.others[name][0]],)
        return tuple(f"{self.rows[name]} {more}" for more in self.search) or (self.rows[name],)


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """Location of a data set that has files."""

    root: Path | None = None
    """Folder of the data set, for presets that need one."""
    cache: Path | None = None
    """Folder for prepared data; default KUNLUN_CACHE, else ~/.cache/kunlun_jax."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of a comparison."""

    name: tyro.conf.Positional[str]
    """A file of experiments/comparisons, or the path of your own."""
    data: DataFlags = DataFlags()
    """Where the data is."""
    seeds: tuple[int, ...] = ()
    """Seeds of parameters; default: those of the comparison."""
    rows: tuple[str, ...] = ()
    """Rows to run; default: all."""
    out: Path | None = None
    """JSON file of the rows; default experiments/results/DEVICE/NAME.json. The picture goes beside it."""
    runs: Path = Path("runs/compare")
    """Folder for run directories; each is deleted once its row is stored."""
    dirty: bool = False
    """Measure code with uncommitted changes."""


def comparison_of(name: str) -> Comparison:
    """A file of ``experiments/comparisons``, or of the path `name`; ValueError for one that is not there."""
    if name.endswith(".py"):
        return load(Path(name), "COMPARISON", Comparison)[2]
    if name not in NAMES:
        raise ValueError(f"no comparison {name!r}; there are {list(NAMES)}")
    return importlib.import_module(f"experiments.comparisons.{name}").COMPARISON


def config_of(flags: str, data: DataFlags) -> TrainConfig:
    """The config of a preset and flags of `experiments.train`, on the data that is there."""
    where = [
        part
        for name, value in (("--data.root", data.root), ("--data.cache", data.cache))
        if value is not None
        for part in (name, str(value))
    ]
    _, config = parse([*shlex.split(flags), *where])
    return dataclasses.replace(config, data=resolve(config.data))


def key_of(comparison: Comparison) -> Callable[[dict[str, Any]], tuple]:
    """What makes two rows the same measurement, in the order of the comparison."""
    order = list(comparison.rows) + list(comparison.others)

    def key(row: dict[str, Any]) -> tuple:
        place = order.index(row["name"]) if row["name"] in order else len(order)
        return place, row["name"], row["seed"], row["flags"], row["data"]

    return key


def run(args: Arguments, comparison: Comparison, path: Path) -> set[str]:
    """Runs what is not stored yet; returns the fingerprints of the data of all rows of the comparison, run or not."""
    keep_compiled(args.data.cache)
    # Now, not when a row is done: the code that runs is what was there at the start.
    started_in = measured_in(args.dirty)
    key, seeds = key_of(comparison), args.seeds or comparison.seeds
    opened: list[tuple[DataConfig, Dataset]] = []

    def dataset_of(config: TrainConfig) -> Dataset:
        """Its data set, which stays open for the next row, as most rows are on the same."""
        if not opened or opened[0][0] != config.data:
            opened.clear()
            opened.append((config.data, open_dataset(config.data)))
        return opened[0][1]

    def of(name: str, flags: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """The rows of these flags, those that are missing measured."""
        config = config_of(flags, args.data)
        dataset, found = dataset_of(config), []
        for seed in seeds:
            row = {"name": name, "seed": seed, "flags": flags, "data": dataset.fingerprint}
            known = next((old for old in stored(path) if key(old) == key(row)), None)
            if known is None:
                print(f"{name}, seed {seed}: measuring {flags}", file=sys.stderr)
                if name in comparison.others:
                    known = add(path, row, key, started_in, functools.partial(comparison.others[name][1], config, seed))
                else:
                    folder = run_folder(row, args.runs / Path(args.name).stem, started_in["commit"])
                    measure = functools.partial(train_row, row, config, dataset, folder)
                    known = add(path, row, key, started_in, measure, folder)
                result = known.get("diverged") or (
                    f"{comparison.split} {comparison.metric} {metric_of(known, comparison):.4f}"
                )
                print(f"{name}, seed {seed}: {result}", file=sys.stderr)
            found.append(known)
        return found

    # Before anything runs, so that flags that cannot be do not end a call of hours.
    every = [flags for name in comparison.rows for flags in comparison.flags_of(name)]
    data = {dataset_of(config_of(flags, args.data)).fingerprint for flags in every}
    for name in args.rows or (*comparison.rows, *comparison.others):
        if name in comparison.others:
            of(name, comparison.rows[comparison.others[name][0]], seeds[:1] if name in comparison.seedless else seeds)
            continue
        flags = comparison.rows[name]
        if comparison.search:
            tried = [row for some in comparison.flags_of(name) for row in of(name, some, comparison.seeds[:1])]
            flags = best(tried, comparison)["flags"]
        of(name, flags, seeds)
    return data


def metric_of(row: dict[str, Any], comparison: Comparison, split: str | None = None) -> float:
    """The comparison's metric of a row, on its split or another one; inf of a run that diverged."""
    return math.inf if diverged(row) else row["splits"][split or comparison.split][comparison.metric]


def best(rows: list[dict[str, Any]], comparison: Comparison) -> dict[str, Any]:
    """The row that is best on "valid"; of equals the first."""
    return min(rows, key=lambda row: metric_of(row, comparison, "valid"))


def current(rows: list[dict[str, Any]], comparison: Comparison, data: set[str] | None = None) -> list[dict[str, Any]]:
    """The rows of the comparison as it is now; those of names that it does not have are kept as they are.

    Args:
      rows: of a file.
      comparison: as it is now.
      data: fingerprints that rows must be of; None: that of them all.

    Raises:
      ValueError: `data` is None, and one row has results on several data sets, which cannot be compared.
    """
    found = [
        row
        for row in rows
        if is_earlier(row["name"], comparison)
        or (row["flags"] in comparison.flags_of(row["name"]) and (data is None or row["data"] in data))
    ]
    for name, group in grouped(found).items():
        if len(several := sorted({row["data"] for row in group})) > 1:
            raise ValueError(f"row {name!r} is of {len(several)} data sets, {several}; keep those of one in the file")
    return found


def chosen(rows: list[dict[str, Any]], comparison: Comparison) -> list[dict[str, Any]]:
    """Of `current` rows those that a table shows: where flags were searched for, those of the best so far."""
    if not comparison.search:
        return rows
    shown = []
    for name, group in grouped(rows).items():
        first = [row for row in group if row["seed"] == comparison.seeds[0]]
        if name in comparison.others or not first:
            shown += group
        else:
            flags = best(first, comparison)["flags"]
            shown += [row for row in group if row["flags"] == flags]
    return shown


def unfinished(rows: list[dict[str, Any]], comparison: Comparison) -> dict[str, str]:
    """Name -> how far the search for its flags is, where it goes on."""
    found = {}
    for name, group in grouped(rows).items() if comparison.search else ():
        count = len({row["flags"] for row in group if row["seed"] == comparison.seeds[0]})
        if name in comparison.rows and count < len(comparison.search):
            found[name] = f" ({count} of {len(comparison.search)} tried)"
    return found


def grouped(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of all seeds by name."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["name"], []).append(row)
    return groups


def differences(rows: list[dict[str, Any]], comparison: Comparison) -> dict[str, list[float]]:
    """Name -> the metric less that of the first row with the same seed, seed by seed."""
    rows = [row for row in rows if not diverged(row)]
    first = {row["seed"]: metric_of(row, comparison) for row in rows if row["name"] == next(iter(comparison.rows))}
    found = {
        name: [metric_of(row, comparison) - first[row["seed"]] for row in group if row["seed"] in first]
        for name, group in grouped(rows).items()
    }
    return {name: values for name, values in found.items() if values}


def paired_p(differences: list[float]) -> str:
    """Two-sided p of a paired t-test over three seeds or more: how likely chance alone makes means differ as much."""
    if len(differences) < 3 or not any(differences):
        return ""
    return f"{scipy.stats.ttest_1samp(differences, 0)[1]:.3f}"


def spread(values: list[float]) -> str:
    """Mean, and the standard deviation of several."""
    mean = statistics.fmean(values)
    return f"{mean:.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def size(group: list[dict[str, Any]], column: str) -> float | None:
    """A size or the speed of a row, its mean over seeds; None where none is known."""
    values = [row[SIZES[column]] for row in group if row.get(SIZES[column]) is not None]
    return statistics.fmean(values) if values else None


def cell(group: list[dict[str, Any]], first: list[dict[str, Any]], column: str) -> str:
    """One cell of the table: a metric's mean over seeds, or a size beside that of the rows `first`, itself in full."""
    if column not in SIZES:
        split, metric = column.split(" ")
        values = [row["splits"][split][metric] for row in group if split in row["splits"]]
        return spread(values) if values else ""
    own, whole = size(group, column), size(first, column)
    if own is None or whole is None:
        return ""
    return f"{whole:,.0f}" if group is first else f"x {own / whole:.3f}"


def is_earlier(name: str, comparison: Comparison) -> bool:
    """Whether rows of this name are of what the comparison once had: presets and flags that have changed since."""
    return name not in comparison.rows and name not in comparison.others


def table(rows: list[dict[str, Any]], comparison: Comparison, *, earlier: bool = False) -> str:
    """`current` rows in Markdown: means over seeds, of metrics with their standard deviation, and what is published.

    A name says how many of its runs diverged, which are in no mean, and how far a search is that goes on.

    Args:
      rows: `current`.
      comparison: whose rows they are.
      earlier: show those that it no longer has, beside its first row, in place of those that it has.
    """
    searching, rows = unfinished(rows, comparison), chosen(rows, comparison)
    against, groups = differences(rows, comparison), grouped(rows)
    first = groups.get(next(iter(comparison.rows)), [])
    published = ("published",) if comparison.published else ()
    difference = f"{comparison.split} {comparison.metric} less the first's, by seed"
    tested = {name: paired_p(values) for name, values in against.items()}
    tests = ("p",) if any(tested.values()) else ()
    heads = (*comparison.columns, difference, *tests, *published)
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, group in groups.items():
        if is_earlier(name, comparison) != earlier:
            continue
        cells = [cell(group, first, column) for column in comparison.columns]
        cells.append(" ".join(f"{value:+.4f}" for value in against.get(name, [])))
        cells += [tested.get(name, "") for _ in tests]
        cells += [comparison.published.get(name, "") for _ in published]
        lost = sum(map(diverged, group))
        note = searching.get(name, "") + (f" ({lost} diverged)" if lost else "")
        lines.append(f"| {name}{note} | {' | '.join(cells)} |")
    return "\n".join(lines)


def drawn(rows: list[dict[str, Any]], comparison: Comparison) -> Figure:
    """How much worse than the first row each of `current` rows is: a bar for the mean and a dot for each seed.

    Bars of rows that the comparison no longer has are pale, and the label says so.
    """
    first, *_ = comparison.rows
    found = differences(chosen(rows, comparison), comparison)
    found.pop(first, None)
    figure = Figure(figsize=(7.5, 0.32 * len(found) + 1.3), dpi=140, layout="constrained")
    axes = figure.subplots()
    for place, (name, values) in enumerate(found.items()):
        color = "#e6b9ae" if is_earlier(name, comparison) else "#c8553d"
        axes.barh(place, statistics.fmean(values), color=color, height=0.55)
        axes.plot(values, [place] * len(values), "o", color="#333333", markersize=3.5)
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.axvline(0, color="#666666", linewidth=0.8)
    pale = "\npale: of earlier presets" * any(is_earlier(name, comparison) for name in found)
    what = f"{comparison.split} {comparison.metric} less that of “{first}”"
    axes.set_xlabel(f"{what}, lower is better; a dot a seed{pale}")
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def picture(rows: list[dict[str, Any]], comparison: Comparison, path: Path) -> None:
    """`drawn` as a file."""
    drawn(rows, comparison).savefig(path)


def main(arguments: list[str] | None = None) -> int:
    """Parses flags, runs what is missing, prints and draws; returns the exit code."""
    args = tyro.cli(Arguments, args=arguments, prog="experiments.compare", description=__doc__)
    try:
        comparison = comparison_of(args.name)
        unknown = sorted(set(args.rows) - {*comparison.rows, *comparison.others})
        if unknown:
            raise ValueError(f"rows names {unknown}; there are {[*comparison.rows, *comparison.others]}")
        path = args.out or RESULTS / jax.default_backend() / f"{Path(args.name).stem}.json"
        data = run(args, comparison, path)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    every = stored(path)
    rows = current(every, comparison, data)
    if len(rows) < len(every):
        print(f"{len(every) - len(rows)} rows of other flags or data are left out", file=sys.stderr)
    print(table(rows, comparison))
    if any(is_earlier(row["name"], comparison) for row in rows):
        print("\nof earlier presets and flags:\n" + table(rows, comparison, earlier=True))
    picture(rows, comparison, path.with_suffix(".png"))
    print(f"rows in {path}, picture in {path.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    # A comparison of one's own imports its class from the module of this name, which `__main__` is not.
    from experiments import compare

    sys.exit(compare.main())
