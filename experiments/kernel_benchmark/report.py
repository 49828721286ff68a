"""The results for a person: a table, and a picture of rates over lengths under the lines that bound them."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.kernel_benchmark.implementations import APART, NAMES, OURS
from experiments.kernel_benchmark.store import unable
from pallas_kernels.chips import chip_of

COLORS = {
    "mosaic": "#2f6fb0",
    APART: "#1b3f66",
    "triton": "#7fb2e5",
    "xla": "#4a8c5c",
    "unfused": "#999999",
    "reference": "#d0b060",
    "meta-triton": "#c8553d",
    "tokamax": "#8661a8",
    "cudnn": "#6b8e23",
    "flex": "#e08e45",
    "sdpa": "#b5651d",
}
LINES = (("pffn 256", "keys 256"), ("pffn 128", "keys 128"), ("self", "own rows as keys"))


def _share(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:6.1%}" if row.get(name) is not None else f"{'-':>6}"


def _error(row: dict[str, Any]) -> str:
    if row.get("error_ratios"):
        text = f"{max(row['error_ratios']):.2f} of {row['error_limit']}"
        return f"{text} WRONG" if row["wrong"] else text
    return "-"


def table(content: dict[str, Any], order: list[str]) -> str:
    """Speeds with their accuracy and shares, then what could not run and why, counted.

    Args:
      content: of a results file.
      order: names of the cases to show, in order.
    """
    rows = [row for row in content["rows"].values() if row["case"] in order]
    rows.sort(key=lambda row: (order.index(row["case"]), row["pass"] != "forward"))
    measured = [row for row in rows if "seconds" in row]
    speeds = {(row["case"], row["pass"]): row for row in measured if row["implementation"] == "xla"}
    small = content["device"] == "cpu"
    unit, scale = ("GFLOP/s", 1e9) if small else ("TFLOP/s", 1e12)
    peaks = content["peaks"]
    lines = [
        f"{content['device']}; {peaks['matmul']} gives {peaks['matmul_flops_per_second'] / scale:.0f} {unit}, a copy "
        f"{peaks['copy_bytes_per_second'] / 1e9:.0f} GB/s" + ("; times of a CPU, toy shapes" if small else ""),
        f"{'case and pass':<58} {'':<12} {'ms':>9} {'kernels':>9} {unit:>8} {'sheet':>6} {'matmul':>6} {'roof':>6} "
        f"{'x xla':>6}  error / bf16's",
    ]
    last = None
    for row in measured:
        here = (row["case"], row["pass"])
        title = f"{row['case']}, {row['pass']}" if here != last else ""
        last, base = here, speeds.get(here)
        times = "-" if base is None else f"{row['flops_per_second'] / base['flops_per_second']:.2f}"
        kernels = row.get("kernel_seconds")
        note = f"  ({row['note']})" if row.get("note") else ""
        lines.append(
            f"{title:<58} {row['implementation']:<12} {row['seconds'] * 1e3:9.3f} "
            f"{'-' if kernels is None else f'{kernels * 1e3:.3f}':>9} {row['flops_per_second'] / scale:8.1f} "
            f"{_share(row, 'share_of_datasheet')} {_share(row, 'share_of_matmul')} {_share(row, 'share_of_roofline')} "
            f"{times:>6}  {_error(row)}{note}"
        )
    lines += ahead(measured)
    # Numbers in a reason (shapes, mostly) would make a line of each case.
    reasons = Counter((r["implementation"], re.sub(r"\d+", "#", r["cannot_run"])) for r in unable(rows))
    lines.append(f"\n{len(measured)} rows measured, {sum(reasons.values())} cannot run")
    for (implementation, why), count in reasons.most_common():
        lines.append(f"  {count:4} x {implementation}: {why}")
    wrong = [row for row in measured if row["wrong"]]
    lines += [f"  WRONG: {row['case']}, {row['pass']}, {row['implementation']}: {row['error_ratios']}" for row in wrong]
    return "\n".join(lines)


def ahead(rows: list[dict[str, Any]]) -> list[str]:
    """For each case and pass the fastest of ours next to the fastest peer, by rate of counted work.

    xla and the reference are ours, but no fused kernels, so they are left out on both sides. A peer at the shape of a
    softmax operator counts even where it leaves the window out, since that is what one would call instead.
    """
    fused, peers = {*OURS, APART} - {"xla"}, set(NAMES) - {*OURS, APART}
    lines = []
    for case, pass_ in dict.fromkeys((row["case"], row["pass"]) for row in rows):
        here = [row for row in rows if (row["case"], row["pass"]) == (case, pass_)]
        own = [row for row in here if row["implementation"] in fused and not row["wrong"]]
        others = [
            row
            for row in here
            if row["implementation"] in peers and (row["same_function"] or row["operator"] != "gdpa")
        ]
        if own and others:
            best, peer = (max(found, key=lambda row: row["flops_per_second"]) for found in (own, others))
            ratio = best["flops_per_second"] / peer["flops_per_second"]
            other = "" if peer["same_function"] else ", another function"
            lines.append(
                f"  {case}, {pass_}: {best['implementation']} {ratio:.2f} x {peer['implementation']}"
                f"{other} ({peer['note']})"
            )
    return ["\nours beside the fastest peer:", *lines] if lines else []


def picture(content: dict[str, Any], order: list[str], path: Path) -> None:
    """Rates over lengths by kind of keys and pass, and those of the other shapes as bars; none without a number."""
    rows = [row for row in content["rows"].values() if "seconds" in row and row["case"] in order]
    if not rows:
        return
    small = content["device"] == "cpu"
    unit, scale = ("GFLOP/s", 1e9) if small else ("TFLOP/s", 1e12)
    groups = [(group, title) for group, title in LINES if any(row["group"] == group for row in rows)]
    others = [name for name in order if any(r["case"] == name and r["group"] not in dict(LINES) for r in rows)]
    figure = Figure(figsize=(11.5, 3.1 * len(groups) + 0.42 * len(others) + 2.0), dpi=130, layout="constrained")
    heights = [3.1] * len(groups) + [0.42 * max(2, len(others)) + 0.6] * bool(others)
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    used: dict[str, Any] = {}
    for i, (group, title) in enumerate(groups):
        for j, pass_ in enumerate(("forward", "backward")):
            axes = figure.add_subplot(grid[i, j])
            here = [row for row in rows if row["group"] == group and row["pass"] == pass_]
            used |= _lines(axes, here, content, scale)
            axes.set_title(f"gdpa, {title}, {pass_}", fontsize=10)
            axes.set_ylabel(unit)
            axes.set_xlabel("longest sequence, rows")
    for j, pass_ in enumerate(("forward", "backward") if others else ()):
        axes = figure.add_subplot(grid[len(groups), j])
        used |= _bars(axes, [row for row in rows if row["pass"] == pass_], others, scale, labels=j == 0)
        axes.set_title(f"other shapes, {pass_}", fontsize=10)
        axes.set_xlabel(unit)
    what = "toy shapes on a CPU: no statement about the kernels" if small else "bf16"
    figure.suptitle(f"{content['device']}, {what}; solid: full lengths, dashed: half on average", fontsize=11)
    figure.legend(used.values(), used.keys(), frameon=False, fontsize=9, loc="outside lower center", ncols=5)
    figure.savefig(path)


def _lines(axes: Axes, rows: list[dict[str, Any]], content: dict[str, Any], scale: float) -> dict[str, Any]:
    used = {}
    for implementation in dict.fromkeys(row["implementation"] for row in rows):
        for sparsity, style in ((1.0, "o-"), (0.5, "o--")):
            points = sorted(
                (row["max_length"], row["flops_per_second"] / scale)
                for row in rows
                if row["implementation"] == implementation and row["sparsity"] == sparsity
            )
            if points:
                color = COLORS.get(implementation, "black")
                (line,) = axes.plot(*zip(*points, strict=True), style, color=color, markersize=4)
                used.setdefault(implementation, line)
    roofs = {row["max_length"]: row["flops"] / row["roofline_seconds"] for row in rows if "roofline_seconds" in row}
    if roofs:
        at = sorted(roofs)
        (used["roofline of the datasheet"],) = axes.plot(at, [roofs[x] / scale for x in at], "k_-", linewidth=1)
    matmul = content["peaks"]["matmul_flops_per_second"] / scale
    used["matrix product measured"] = axes.axhline(matmul, color="#555555", linestyle=":", linewidth=1.2)
    chip = chip_of(content["device"])
    if chip is not None:
        used["datasheet"] = axes.axhline(chip.flops / scale, color="#bbbbbb", linewidth=1.2)
    lengths = sorted({row["max_length"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return used


def _bars(axes: Axes, rows: list[dict[str, Any]], names: list[str], scale: float, *, labels: bool) -> dict[str, Any]:
    used = {}
    shown = list(dict.fromkeys(row["implementation"] for row in rows if row["case"] in names))
    height = 0.8 / max(1, len(shown))
    for row in (row for row in rows if row["case"] in names):
        y = names.index(row["case"]) + shown.index(row["implementation"]) * height
        color = COLORS.get(row["implementation"], "black")
        used[row["implementation"]] = axes.barh(y, row["flops_per_second"] / scale, height, color=color)
    ticks = [y + 0.4 - height / 2 for y in range(len(names))]
    axes.set_yticks(ticks, names if labels else [""] * len(names), fontsize=7)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return used
