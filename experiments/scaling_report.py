"""What `experiments.scaling_law` has measured: the laws as a table and as a picture, beside what else is stored."""

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

from experiments.result_rows import RESULTS, diverged, stored
from experiments.scaling_plan import BASELINE, Budget, Data, families, search
from kunlun_jax.scaling import LEAST_LOG, LEAST_POWER, Estimate, LogLaw, PowerLaw, efficiency, fit_log, fit_power

STYLES = {
    "kunlun": ("#c8553d", "Kunlun"),
    "interformer": ("#2f6fb0", "InterFormer"),
    "wukong": ("#4a8c5c", "Wukong"),
    "hstu": ("#a7792b", "HSTU"),
    "din": ("#8661a8", "DIN"),
}
"""System -> color and name."""
REFERENCES = {
    "lr-matches": "logistic regression, match counts",
    "trees-matches": "trees, match counts",
}
"""Systems of learns.json that are drawn in -> how they are called; those without a size."""
ALL_ROWS = {
    "logistic regression": "logistic regression, all rows",
    "LightGBM": "LightGBM, all rows",
    "Kunlun": "kunlun/movielens, all rows",
}
"""Rows of the comparison "movielens" that are drawn in -> how they are called. They have four times the law's rows."""
DEPTHS = {"one layer": 1, "two layers": 2, "three layers": 3}
"""Rows of the comparisons of sizes -> layers of kunlun/small."""
HEADS = (
    "system",
    "runs",
    "rates",
    "eta",
    "NE_0",
    "R^2",
    "largest",
    "E",
    "A",
    "b",
    "R^2",
    "largest",
    "efficiency",
)
"""Columns; the law NE_0 - eta log10(C / 10^6) comes first, then E + A (C / 10^6)^-b. "largest" is what a law fitted
without the largest size predicts for it, less what was measured. Where the sizes do not bend to a floor, E is -inf.
What machine time gains is told by `experiments.scaling_speed`: runs of many days have no MFU to compare."""


@dataclasses.dataclass(frozen=True)
class Laws:
    """What the rows of one system say.

    Attributes:
      flops, ne: of its runs.
      log, power: the laws, where there are sizes enough.
      log_miss, power_miss: fitted without the largest size, its predicted NE less the measured.
      diverged: runs without a result, which are in no law.
    """

    flops: np.ndarray
    ne: np.ndarray
    log: LogLaw | None
    power: PowerLaw | None
    log_miss: float | None
    power_miss: float | None
    diverged: int


def laws(rows: list[dict[str, Any]], seed: int = 0) -> Laws:
    """The laws of one system's rows, of NE on "test"; `seed` draws their intervals, another for each system."""
    every, rows = rows, [row for row in rows if not diverged(row)]
    flops = np.array([row["flops_per_example"] for row in rows])
    ne = np.array([row["splits"]["test"]["ne"] for row in rows])
    sizes, largest = len(np.unique(flops)), flops == flops.max()
    log = fit_log(flops, ne, seed=seed) if sizes >= LEAST_LOG else None
    power = fit_power(flops, ne, seed=seed) if sizes >= LEAST_POWER else None
    without = (flops[~largest], ne[~largest])
    misses = [
        float(fit(*without).predict(flops[largest][:1])[0] - ne[largest].mean()) if sizes > least else None
        for fit, least in ((fit_log, LEAST_LOG), (fit_power, LEAST_POWER))
    ]
    return Laws(flops, ne, log, power, misses[0], misses[1], len(every) - len(rows))


def laws_of(rows: list[dict[str, Any]], budget: Budget) -> dict[str, Laws]:
    """System -> its laws, of `current` rows."""
    # Each has a run that did not diverge: that of a tuned size at its best rate.
    return {system: laws(group, seed=[*STYLES].index(system)) for system, group in families(budget, rows).items()}


def with_interval(estimate: Estimate, digits: int) -> str:
    """A number and its 95% interval."""
    low, high = estimate.interval
    return f"{estimate.value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def rates(rows: list[dict[str, Any]], budget: Budget, system: str) -> str:
    """The best rate of the two tuned sizes; a star marks one that lies at an end of those that were tried."""
    found = [search(budget, rows, system, size) for size in budget.tuned]
    return ", ".join(
        "?" if best is None else f"{best:g}" + "*" * (best in (tried[0], tried[-1])) for tried, best in found
    )


def markdown(rows: list[dict[str, Any]], budget: Budget) -> str:
    """The laws of all systems that have `current` rows; cells are empty where sizes are too few."""
    found = laws_of(rows, budget)
    baseline = found.get(BASELINE)
    lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    for system, law in found.items():
        runs = f"{len(law.ne)}, {law.diverged} diverged" if law.diverged else str(len(law.ne))
        cells = [STYLES[system][1], runs, rates(rows, budget, system)]
        cells += ["", "", ""] if law.log is None else [
            with_interval(law.log.eta, 4), with_interval(law.log.ne_0, 4), f"{law.log.r_squared:.3f}"
        ]  # fmt: skip
        cells.append("" if law.log_miss is None else f"{law.log_miss:+.4f}")
        if law.power is None:
            cells += [""] * 4
        else:
            cells += [with_interval(x, 3) for x in (law.power.e, law.power.a, law.power.b)]
            cells.append(f"{law.power.r_squared:.3f}")
        cells.append("" if law.power_miss is None else f"{law.power_miss:+.4f}")
        if law.log is None or baseline is None or baseline.log is None or law is baseline:
            cells.append("")
        else:
            cells.append(with_interval(efficiency(law.log, baseline.log), 2))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_laws(axes: Axes, rows: list[dict[str, Any]], budget: Budget) -> None:
    """NE of `current` rows over FLOPs: a dot a run, the log law a line, the power law dashed.

    A small cross is a run at another rate, or of a search that has not ended.
    """
    kept = families(budget, rows)
    for system, (color, name) in STYLES.items():
        others = [
            row for row in rows if row["system"] == system and row not in kept.get(system, []) and not diverged(row)
        ]
        dots = [(row["flops_per_example"], row["splits"]["test"]["ne"]) for row in others]
        label = f"{name}, search for a rate" if dots and system not in kept else None
        axes.plot(*np.array(dots).reshape(-1, 2).T, "x", color=color, markersize=3, alpha=0.5, label=label)
    for system, law in laws_of(rows, budget).items():
        color, name = STYLES[system]
        axes.plot(law.flops, law.ne, "o", color=color, markersize=4, alpha=0.8, label=None if law.log else name)
        points = np.geomspace(law.flops.min(), law.flops.max(), 100)
        if law.log is not None:
            eta = f"{name}, eta {with_interval(law.log.eta, 4)}"
            axes.plot(points, law.log.predict(points), color=color, linewidth=1.6, label=eta)
        if law.power is not None:
            axes.plot(points, law.power.predict(points), color=color, linewidth=1, linestyle=(0, (4, 2)))
    axes.set_xscale("log")
    axes.set_xlabel("useful forward FLOPs per example")
    axes.set_ylabel("test NE (lower is better)")


def draw_levels(axes: Axes, levels: dict[str, list[float]]) -> None:
    """A dotted line for the mean NE of each that has any; the text on it is its name and that mean."""
    for name, found in levels.items():
        if found:
            ne = statistics.fmean(found)
            axes.axhline(ne, color="#666666", linewidth=0.8, linestyle=":")
            axes.annotate(
                f"{name} {ne:.3f}",
                (0.01, ne),
                xycoords=("axes fraction", "data"),
                xytext=(0, 2),
                textcoords="offset points",
                fontsize=7,
                color="#666666",
            )


def draw_synthetic_references(axes: Axes, fingerprint: str) -> None:
    """What learns.json has of the same rows: the floor, models without a size as lines, presets as diamonds."""
    same = [row for row in stored(RESULTS / "cpu" / "learns.json") if row["data"] == fingerprint]
    levels = {"floor of the world": [row["floor"]["test"] for row in same[:1]]}
    for system, name in REFERENCES.items():
        levels[name] = [row["test"]["ne"] for row in same if row["system"] == system]
    draw_levels(axes, levels)
    for system in dict.fromkeys(row["system"] for row in same if "flops_per_example" in row):
        group = [row for row in same if row["system"] == system]
        color, name = STYLES.get(system, ("#333333", system))
        ne = statistics.fmean(row["test"]["ne"] for row in group)
        axes.plot(group[0]["flops_per_example"], ne, "D", color=color, fillstyle="none", label=f"{name}, preset small")


def draw_movielens_references(axes: Axes, fingerprint: str) -> None:
    """What the comparison "movielens" has of all its rows, which the law takes a quarter of."""
    same = [row for row in stored(RESULTS / "cpu" / "movielens.json") if row["data"] == fingerprint]
    draw_levels(
        axes,
        {text: [row["splits"]["test"]["ne"] for row in same if row["name"] == name] for name, text in ALL_ROWS.items()},
    )


def draw_depth(axes: Axes) -> None:
    """NE of kunlun/small over its layers, as the comparisons of sizes have it: a dot a seed."""
    for name, label, color in (("sizes", "150,000 rows", "#c8553d"), ("sizes_600k", "600,000 rows", "#8d2f1c")):
        dots = [
            (DEPTHS[row["name"]], row["splits"]["test"]["ne"])
            for row in stored(RESULTS / "cpu" / f"{name}.json")
            if row["name"] in DEPTHS
        ]
        if dots:
            axes.plot(*zip(*dots, strict=True), "o", color=color, markersize=4, label=label)
            depths = sorted({depth for depth, _ in dots})
            axes.plot(depths, [statistics.fmean(n for d, n in dots if d == depth) for depth in depths], color=color)
    axes.set_xticks(list(DEPTHS.values()))
    axes.set_xlabel("layers of kunlun/small")
    axes.set_ylabel("test NE")


def draw_data(axes: Axes) -> None:
    """NE over training rows, as learns.json has it, of the neural systems: a dot a seed."""
    rows = stored(RESULTS / "cpu" / "learns.json")
    for system, color, name in (("kunlun", *STYLES["kunlun"]), ("din", *STYLES["din"])):
        dots = sorted((row["rows"], row["test"]["ne"]) for row in rows if row["system"] == system)
        counts = sorted({count for count, _ in dots})
        axes.plot(*zip(*dots, strict=True), "o", color=color, markersize=4)
        means = [statistics.fmean(ne for c, ne in dots if c == count) for count in counts]
        axes.plot(counts, means, color=color, label=f"{name}, preset small")
    axes.set_xscale("log")
    axes.set_xticks(sorted({row["rows"] for row in rows}))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("training rows, one pass")
    axes.set_ylabel("test NE")


def drawn(rows: list[dict[str, Any]], budget: Budget, data: Data) -> Figure:
    """The laws of `current` rows; beside those of the synthetic world NE over depth and over training rows."""
    if data == "movielens":
        figure = Figure(figsize=(8, 6.5), dpi=130, layout="constrained")
        whole = figure.add_subplot()
        sides = []
    else:
        figure = Figure(figsize=(12, 6.5), dpi=130, layout="constrained")
        grid = figure.add_gridspec(2, 3)
        whole, *sides = (figure.add_subplot(grid[place]) for place in ((slice(None), slice(2)), (0, 2), (1, 2)))
        draw_depth(sides[0])
        draw_data(sides[1])
    draw_laws(whole, rows, budget)
    if rows:
        draw = draw_movielens_references if data == "movielens" else draw_synthetic_references
        draw(whole, rows[0]["data"])
    for axes in (whole, *sides):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in sides:
        axes.legend(frameon=False, fontsize=8)
    if whole.get_legend_handles_labels()[0]:
        # Between what is measured and the floor; where there is none, above.
        place = ("upper right", (1, 1)) if data == "movielens" else ("lower right", (1, 0.12))
        whole.legend(frameon=False, fontsize=8, loc=place[0], bbox_to_anchor=place[1])
    return figure


def picture(rows: list[dict[str, Any]], budget: Budget, data: Data, path: Path) -> None:
    """`drawn` as a file."""
    drawn(rows, budget, data).savefig(path)
