"""What `experiments.scaling_speed` has measured, as tables and as a picture, beside the NE that the law's rows have."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.result_rows import RESULTS, diverged, stored
from experiments.scaling_plan import BASELINE, FILES, Budget, Data, Planned, current, families
from experiments.scaling_report import STYLES, with_interval
from kunlun_jax.scaling import LEAST_LOG, LogLaw, efficiency, fit_log

TITLES: dict[Data, str] = {"synthetic": "synthetic world", "movielens": "MovieLens"}
HEADS = ("efficiency x MFU", "eta over time", "efficiency over time")
"""Columns behind those of the sizes, which have examples/s and MFU. The first is the paper's product (R), the law's
efficiency times the largest sizes' ratio of MFU, without an interval; eta over time is NE gained by ten times the time
of an example, and the last column that of the system over the baseline's."""


@dataclasses.dataclass(frozen=True)
class Speeds:
    """What is known of one system on one data set.

    Attributes:
      rows: of its sizes, smallest first.
      times, ne: of each run of the law, at a size that is in `rows`: microseconds of an example's training, NE on
        "test".
      flops_law, time_law: NE over FLOPs and over time, where there are sizes enough.
    """

    rows: list[dict[str, Any]]
    times: np.ndarray
    ne: np.ndarray
    flops_law: LogLaw | None
    time_law: LogLaw | None


def speeds_of(rows: list[dict[str, Any]], budget: Budget, data: Data) -> dict[str, Speeds]:
    """System -> what is known of it; of the rows of this data set's families as they are now."""
    mine = [row for row in rows if row["flags"] == Planned(row["system"], row["size"], None, 0).flags(budget, data)]
    if not mine:
        return {}
    law_file = RESULTS / mine[0]["environment"]["backend"] / f"{FILES[data]}.json"
    law = families(budget, current(stored(law_file), budget, data, mine[0]["data"]))
    found = {}
    for number, system in enumerate(STYLES):
        own = sorted((row for row in mine if row["system"] == system), key=lambda row: row["size"])
        if not own:
            continue
        micros = {row["size"]: 1e6 / row["examples_per_second"] for row in own}
        runs = [run for run in law.get(system, []) if run["size"] in micros and not diverged(run)]
        times = np.array([micros[run["size"]] for run in runs])
        flops = np.array([run["flops_per_example"] for run in runs])
        ne = np.array([run["splits"]["test"]["ne"] for run in runs])
        enough = len(np.unique(times)) >= LEAST_LOG
        laws = [fit_log(x, ne, seed=number) if enough else None for x in (flops, times)]
        found[system] = Speeds(own, times, ne, *laws)
    return found


def _ratios(own: Speeds, baseline: Speeds | None) -> list[str]:
    """The cells under `HEADS`."""
    if own.flops_law is None or own.time_law is None:
        return ["", "", ""]
    eta = with_interval(own.time_law.eta, 4)
    if baseline is None or own is baseline or baseline.flops_law is None or baseline.time_law is None:
        return ["", eta, ""]
    product = efficiency(own.flops_law, baseline.flops_law).value * own.rows[-1]["mfu_ratio"]
    return [f"{product:.2f}", eta, with_interval(efficiency(own.time_law, baseline.time_law), 2)]


def markdown(rows: list[dict[str, Any]], budget: Budget) -> str:
    """A table for each data set: examples/s and MFU of every size, and what time gains."""
    tables = []
    for data in budget.flags:
        found = speeds_of(rows, budget, data)
        if not found:
            continue
        heads = [f"{TITLES[data]}: examples/s, MFU", *(f"size {size}" for size in budget.sizes), *HEADS]
        lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for system, own in found.items():
            sizes = {row["size"]: f"{row['examples_per_second']:,.0f}, {row['mfu']:.1%}" for row in own.rows}
            cells = [STYLES[system][1], *(sizes.get(size, "") for size in budget.sizes)]
            lines.append(f"| {' | '.join([*cells, *_ratios(own, found.get(BASELINE))])} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def draw_time(axes: Axes, found: dict[str, Speeds]) -> None:
    """NE over the time of an example: a dot a run, its log law a line."""
    for system, own in found.items():
        color, name = STYLES[system]
        axes.plot(own.times, own.ne, "o", color=color, markersize=4, alpha=0.8, label=name)
        if own.time_law is not None:
            points = np.geomspace(own.times.min(), own.times.max(), 100)
            axes.plot(points, own.time_law.predict(points), color=color, linewidth=1.6)
    axes.set_xlabel("microseconds of training per example")
    axes.set_ylabel("test NE (lower is better)")


def draw_mfu(axes: Axes, found: dict[str, Speeds]) -> None:
    """MFU over FLOPs, from the slowest to the fastest round of each size."""
    for system, own in found.items():
        color, name = STYLES[system]
        flops = [row["flops_per_example"] for row in own.rows]
        middle = np.array([100 * row["mfu"] for row in own.rows])
        rounds = [np.array(row["step_seconds_all"]) for row in own.rows]
        ends = np.array(
            [
                [row["step_seconds"] / s.max(), row["step_seconds"] / s.min()]
                for row, s in zip(own.rows, rounds, strict=True)
            ]
        )
        axes.plot(flops, middle, "o-", color=color, markersize=4, linewidth=1.2, label=name)
        axes.vlines(flops, middle * ends[:, 0], middle * ends[:, 1], color=color, linewidth=3, alpha=0.3)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("useful forward FLOPs per example")
    axes.set_ylabel("MFU of a training step, %")


def drawn(rows: list[dict[str, Any]], budget: Budget) -> Figure:
    """For each data set NE over time, and MFU over FLOPs beside it."""
    every = {data: speeds_of(rows, budget, data) for data in budget.flags}
    every = {data: found for data, found in every.items() if found}
    figure = Figure(figsize=(12, 4.6 * max(len(every), 1)), dpi=120, layout="constrained")
    grid = figure.subplots(max(len(every), 1), 2, squeeze=False)
    for (left, right), (data, found) in zip(grid, every.items(), strict=False):
        draw_time(left, found)
        draw_mfu(right, found)
        left.set_title(TITLES[data], loc="left", fontsize=10)
        for axes in (left, right):
            axes.set_xscale("log")
            axes.grid(alpha=0.25, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=8)
    return figure


def picture(rows: list[dict[str, Any]], budget: Budget, path: Path) -> None:
    """`drawn` as a file."""
    drawn(rows, budget).savefig(path)
