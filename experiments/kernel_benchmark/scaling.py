"""Does window attention take time in proportion to rows times window? Lengths that double at one window, and a fit.

Each length is measured in the window (100, 100) and, as far as it is affordable, with a window as long as the sequence,
which is full attention. The exponent is the slope of log seconds over log length by least squares: 1 for time that
grows as the rows, 2 as their square. Batch and heads stay the same, so that on a GPU the shortest fills the chip too.
All lengths take turns in each round, so that a busy machine slows all of them alike, and the fastest round is fitted,
as other work on a machine only ever adds to a time; the median is given, too.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.kernel_benchmark.cases import Case
from experiments.kernel_benchmark.report import COLORS
from experiments.kernel_benchmark.run import PASSES
from experiments.kernel_benchmark.store import Row, Store, unable

WINDOW = (100, 100)
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
MOST_SMALL, MOST_FULL = 8192, 4096
"""Longest sequences without a GPU, and longest in full attention."""


def cases_for(small: bool) -> tuple[Case, ...]:
    """What is measured; small without a GPU."""
    shape: dict[str, Any] = {"batch": 2, "heads": 2, "dim": 32} if small else {"batch": 32, "heads": 4, "dim": 128}
    lengths = [length for length in LENGTHS if length <= (MOST_SMALL if small else LENGTHS[-1])]
    windows = [(length, WINDOW) for length in lengths] + [(n, (n, n)) for n in lengths if n <= MOST_FULL]
    return tuple(Case("scaling", max_length=n, sparsity=1.0, window=window, **shape) for n, window in windows)


def groups(store: Store, small: bool, names: tuple[str, ...], retry: bool) -> list[list[Row]]:
    """The rows of each implementation, of `names` or by default, and pass of which one is to be measured.

    They are measured again as a whole, since the lengths belong together. `retry` is that of `Store.lacks`.
    """
    wanted = names or (("xla",) if small else ("mosaic",))
    every = [[Row(case, pass_, name) for case in cases_for(small)] for name in wanted for pass_ in PASSES]
    return [rows for rows in every if any(store.lacks(row, retry) for row in rows)]


def _series(content: dict[str, Any]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Measured rows by implementation, pass and kind of window, ascending in length.

    "rows" are those of all examples, "keys" what a row inside may read.
    """
    cases = {case.name: case for small in (False, True) for case in cases_for(small)}
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in content["rows"].values():
        case = cases.get(row["case"])
        if "seconds" in row and case is not None and case.window is not None:
            counted = {"rows": case.batch * case.max_length, "keys": min(sum(case.window) + 1, case.max_length)}
            key = (row["implementation"], row["pass"], "window" if case.window == WINDOW else "full")
            found.setdefault(key, []).append(row | counted)
    return {key: sorted(rows, key=lambda row: row["max_length"]) for key, rows in found.items()}


def fits(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Least squares of log seconds over log length for each series of 3 lengths or more.

    Returns:
      Objects ``{"implementation", "pass", "window", "exponent", "seconds_at_1024", "largest_deviation", "lengths"}``;
      the deviation is the largest ratio between a time and the fit, less 1.
    """
    found = []
    for (implementation, pass_, kind), rows in _series(content).items():
        if len(rows) < 3:
            continue
        lengths, seconds = (np.array([row[name] for row in rows], float) for name in ("max_length", "fastest_seconds"))
        exponent, offset = np.polyfit(np.log(lengths / 1024), np.log(seconds), 1)
        residual = np.log(seconds) - (exponent * np.log(lengths / 1024) + offset)
        found.append(
            {
                "implementation": implementation,
                "pass": pass_,
                "window": kind,
                "exponent": float(exponent),
                "seconds_at_1024": float(np.exp(offset)),
                "largest_deviation": float(np.exp(np.abs(residual).max()) - 1),
                "lengths": [row["max_length"] for row in rows],
            }
        )
    return found


def _title(content: dict[str, Any]) -> str:
    small = content["device"] == "cpu"
    shape = cases_for(small)[0]
    what = "the XLA program on a CPU: no statement about GPU kernels" if small else "bf16"
    return f"window_attention, {content['device']}, {shape.batch} x {shape.heads} heads of {shape.dim}; {what}"


def table(content: dict[str, Any]) -> str:
    """Times, times of a row and key inside the window, and the fitted exponents."""
    columns = f"{'rows':>7} {'median ms':>10} {'fastest':>9} {'ns / row':>9} {'ps / pair':>10}"
    lines = [_title(content), f"{'':<10} {'pass':<9} {'window':<10} {columns}"]
    for (implementation, pass_, kind), rows in _series(content).items():
        for row in rows:
            wide = f"{WINDOW[0]},{WINDOW[1]}" if kind == "window" else "full"
            fastest = row["fastest_seconds"]
            lines.append(
                f"{implementation:<10} {pass_:<9} {wide:<10} {row['max_length']:>7} {row['seconds'] * 1e3:10.3f} "
                f"{fastest * 1e3:9.3f} {fastest / row['rows'] * 1e9:9.1f} "
                f"{fastest / row['rows'] / row['keys'] * 1e12:10.1f}"
            )
    for fit in fits(content):
        lines.append(
            f"{fit['implementation']}, {fit['pass']}, {fit['window']}: seconds ~ length ^ {fit['exponent']:.3f} over "
            f"{fit['lengths'][0]} to {fit['lengths'][-1]} rows, no time further than {fit['largest_deviation']:.0%} off"
        )
    for row in unable(content["rows"].values()):
        lines.append(f"  cannot run: {row['case']}, {row['pass']}, {row['implementation']}: {row['cannot_run']}")
    return "\n".join(lines)


def picture(content: dict[str, Any], path: Path) -> None:
    """Seconds over length, and seconds of a row and key inside the window, which a proportional time keeps level."""
    figure = Figure(figsize=(10.5, 7.2), dpi=130, layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey="row")
    used: dict[str, Any] = {}
    exponents = {(fit["implementation"], fit["pass"], fit["window"]): fit["exponent"] for fit in fits(content)}
    for (implementation, pass_, kind), rows in _series(content).items():
        column = ("forward", "backward").index(pass_)
        lengths = [row["max_length"] for row in rows]
        style = {"color": COLORS.get(implementation, "black"), "markersize": 4}
        line = "o-" if kind == "window" else "s--"
        (drawn,) = grid[0, column].plot(lengths, [row["fastest_seconds"] * 1e3 for row in rows], line, **style)
        exponent = exponents.get((implementation, pass_, kind))
        if exponent is not None:
            grid[0, column].annotate(
                f"$S^{{{exponent:.2f}}}$",
                (lengths[-1], rows[-1]["fastest_seconds"] * 1e3),
                xytext=(-8, 4) if kind == "full" else (0, -16),
                textcoords="offset points",
                ha="right",
                fontsize=9,
                color=style["color"],
            )
        per_pair = [row["fastest_seconds"] / (row["rows"] * row["keys"]) * 1e9 for row in rows]
        grid[1, column].plot(lengths, per_pair, line, **style)
        wide = f"window {WINDOW[0]} + 1 + {WINDOW[1]}" if kind == "window" else "full attention"
        used.setdefault(f"{implementation}, {wide}", drawn)
    for axes, pass_ in zip(grid[0], ("forward", "backward"), strict=True):
        axes.set_title(pass_, fontsize=10)
        axes.set_yscale("log")
    grid[0, 0].set_ylabel("ms, fastest round")
    grid[1, 0].set_ylabel("ns for a row and a key of its window")
    lengths = sorted({row["max_length"] for rows in _series(content).values() for row in rows})
    for axes in grid.flat:
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.minorticks_off()
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[1]:
        axes.set_ylim(bottom=0)
        axes.set_xlabel("rows of a sequence, S")
    figure.suptitle(_title(content), fontsize=11)
    if used:
        figure.legend(used.values(), used.keys(), frameon=False, fontsize=9, loc="outside lower center", ncols=4)
    figure.savefig(path)
