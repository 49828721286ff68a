"""The rows of a dry run for people: a table for a terminal, and a picture of how all of it grows with the devices."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from experiments.dry_run.fit import fits, needed
from experiments.dry_run.machine import MACHINES, USABLE, Machine
from experiments.dry_run.prediction import LINKS, predict

COLORS = {
    "parameters": "#2f6fb0",
    "optimizer state": "#7aa6d6",
    "tables": "#4a8c5c",
    "table optimizer state": "#9cc7a5",
    "batch": "#d9a441",
    "temporaries": "#c8553d",
    "gdpa": "#2f6fb0",
    "attention": "#7aa6d6",
    "maps": "#4a8c5c",
    "traffic": "#d9a441",
    "nvlink": "#c8553d",
    "network": "#7d3c98",
}


def of(row: Mapping[str, Any]) -> str:
    """What a row is of."""
    axes = " x ".join(f"{name} {size}" for name, size in row["axes"].items() if size > 1)
    events = "histories of the data" if row["lengths"] == "data" else "full histories"
    where = f"{row['devices']} devices ({row['topology']}, {axes})"
    return f"{row['preset']} on {where}, {row['examples']} examples each, {events}"


def table(rows: Sequence[Mapping[str, Any]], machine: Machine) -> str:
    """Everything of each row."""
    return "\n\n".join("\n".join(_lines(row, machine)) for row in rows)


def _lines(row: Mapping[str, Any], machine: Machine) -> list[str]:
    if "failed" in row:
        return [of(row), f"  did not compile: {row['failed']}"]
    kinds = {name: number for name, number in row["memory"].items() if number}
    verdict = "fits" if fits(row, machine) else "DOES NOT FIT"
    lines = [
        of(row),
        f"  memory of a device, GB ({machine.chip.model}: {machine.memory / 1e9:.0f}, of which {USABLE:.0%} usable)",
    ]
    lines += [f"    {name:28}{number / 1e9:10.3f}" for name, number in kinds.items()]
    lines.append(f"    {'all':28}{needed(row) / 1e9:10.3f}  {verdict}")
    lines.append(f"  a device sends in a step, MB {'':11}{'runs':>6}{'result':>10}{'NVLink':>10}{'network':>10}")
    for one in row["collectives"]:
        name = f"{one['kind']} of {one['group_size']}"
        sizes = "".join(f"{one[key] / 1e6:10.2f}" for key in ("bytes", *LINKS))
        lines.append(f"    {name:36}{one['runs']:6}{sizes}")
    found = predict(row, machine)
    lines.append(
        f"  {row['mosaic_calls']} calls of Mosaic kernels; operators are {', '.join(row['implementations']) or 'none'}"
    )
    lines.append("  predicted, not measured: milliseconds of a step at the rates of datasheets")
    lines.append("    " + ", ".join(f"{name} {1e3 * seconds:.3f}" for name, seconds in found.parts.items()))
    least, most = found.mfu
    lines.append(
        f"    {1e3 * found.overlapped:.2f} if all overlaps, {1e3 * found.apart:.2f} if nothing does; the longest is "
        f"{found.limit}"
    )
    useful = f"{row['work']['useful_flops'] / 1e12:.2f} useful TFLOPs a device"
    lines.append(f"    predicted MFU {least:.1%} to {most:.1%}, of {useful}")
    return lines


def series(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """What is compiled, by preset, histories, examples and the axes but the first -> rows in order of devices."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["devices"]):
        if "failed" not in row:
            others = "".join(f", {name} {size}" for name, size in list(row["axes"].items())[1:] if size > 1)
            name = f"{row['preset']}, {row['lengths']}, {row['examples']} examples{others}"
            found.setdefault(name, []).append(row)
    return dict(sorted(found.items()))


def picture(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Memory, bytes sent and predicted time of a device over devices: a column for each of `series`.

    Raises:
      ValueError: no row has anything to be drawn.
    """
    shown = series(rows)
    if not shown:
        raise ValueError(f"{path}: nothing of these rows compiled, so there is nothing to be drawn")
    machine = MACHINES[next(iter(shown.values()))[0]["chip"]]
    figure = Figure(figsize=(2.2 + 3.4 * len(shown), 8.2), dpi=140, layout="constrained")
    panels = figure.subplots(3, len(shown), squeeze=False, sharey="row")
    for column, (name, of_series) in enumerate(shown.items()):
        memory, sent, time = panels[:, column]
        places, labels = range(len(of_series)), [str(row["devices"]) for row in of_series]
        _stack(memory, of_series, lambda row: {k: v / 1e9 for k, v in row["memory"].items() if k in COLORS})
        memory.axhline(USABLE * machine.memory / 1e9, color="#888888", linestyle="--", linewidth=0.8, label="usable")
        memory.set_title(name.replace(", ", "\n", 1), fontsize=9)
        for link in LINKS:
            numbers = [sum(one[link] for one in row["collectives"]) / 1e9 for row in of_series]
            sent.plot(places, numbers, "o-", color=COLORS[link], label=link)
        _stack(time, of_series, lambda row: {k: 1e3 * v for k, v in predict(row, machine).parts.items()})
        for place, row in zip(places, of_series, strict=True):
            found = predict(row, machine)
            least, most = found.mfu
            text = f"MFU {100 * least:.0f}-{100 * most:.0f}%"
            time.annotate(text, (place, 1e3 * found.apart), ha="center", va="bottom", fontsize=7)
        for axes in (memory, sent, time):
            axes.set_xticks(places, labels)
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlim(-0.6, len(of_series) - 0.4)
            axes.grid(axis="y", alpha=0.25, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        time.set_xlabel("devices")
        time.margins(y=0.12)
    for axes, title in zip(
        panels[:, 0], ("memory, GB", "sent in a step, GB", "predicted ms of a step,\nnothing overlapping"), strict=True
    ):
        axes.set_ylabel(title)
        axes.set_ylim(bottom=0)
    for axes in panels[:, -1]:
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(f"a training step on {machine.chip.model}s, of one device: compiled, and not run", fontsize=10)
    figure.savefig(path)


def _stack(axes: Any, rows: Sequence[Mapping[str, Any]], parts_of: Any) -> None:
    """A bar for each row, of its parts."""
    bottoms = [0.0] * len(rows)
    parts = [parts_of(row) for row in rows]
    for name in parts[0]:
        heights = [part[name] for part in parts]
        axes.bar(range(len(rows)), heights, 0.6, bottom=bottoms, color=COLORS[name], label=name)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
