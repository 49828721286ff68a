"""What `experiments.mfu` has measured, as tables and as a picture."""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.mfu_ladder import TITLES


def settings_of(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Heading -> the rows of a setting."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        mean = statistics.fmean(row["mean_events"].values())
        limit = row["peak"]["flops_per_second"]
        heading = (
            f"{row['size']}, {row['lengths']}: {row['settings']['batch']:,} examples of {mean:.0f} events of each type "
            f"on average, padded to {row['padded_to']}; {row['peak']['dtype']}, peak {limit / 1e9:,.0f} GFLOP/s "
            f"({row['peak']['source'].split(',')[0]})"
        )
        groups.setdefault(heading, []).append(row)
    return groups


HEADS = ("GFLOPs", "step", "examples/s", "ratio", "MFU", "ratio", "memory")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """The numbers of a row under `HEADS`: useful GFLOPs of an example's training, step time, rate, MFU, memory."""
    speed, share = (f"{row[name]:.2f}" if name in row else "" for name in ("speed_ratio", "mfu_ratio"))
    rate = row["examples_per_second"]
    return (
        f"{row['useful_flops_per_example'] / 1e9:.3g}",
        f"{row['step_seconds'] * 1e3:,.0f} ms",
        f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}",
        speed,
        f"{row['mfu']:.1%}",
        share,
        f"{row['peak_memory_bytes'] / 1e9:.2f} GB",
    )


def table(rows: list[dict[str, Any]]) -> str:
    """The numbers for a person."""
    lines = []
    for heading, group in settings_of(rows).items():
        lines += [heading, f"  {'':28}" + "".join(f"{head:>12}" for head in HEADS)]
        lines += [f"  {TITLES[row['name']]:28}" + "".join(f"{cell:>12}" for cell in cells(row)) for row in group]
    return "\n".join(lines)


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table for each setting."""
    tables = []
    for heading, group in settings_of(rows).items():
        lines = [f"| {heading} | {' | '.join(HEADS)} |", "|---" * (len(HEADS) + 1) + "|"]
        lines += [f"| {TITLES[row['name']]} | {' | '.join(cells(row))} |" for row in group]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """MFU and examples/s of each row, the first row on top: a bar for each setting."""
    groups = {f"{group[0]['size']}, {group[0]['lengths']}": group for group in settings_of(rows).values()}
    names = [name for name in TITLES if any(row["name"] == name for row in rows)]
    height = 0.8 / len(groups)
    figure = Figure(figsize=(10, 0.55 * len(names) + 1.4), dpi=140, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (label, group) in enumerate(groups.items()):
        color = ("#2f6fb0", "#c8553d", "#4a8c5c", "#8661a8", "#a7792b", "#666666")[number % 6]
        at = [names.index(row["name"]) + (number - (len(groups) - 1) / 2) * height for row in group]
        shares = left.barh(at, [100 * row["mfu"] for row in group], height, color=color, label=label)
        left.bar_label(shares, [f"{row['mfu']:.1%}" for row in group], fontsize=7, padding=2)
        first = group[0]["examples_per_second"]
        rates = right.barh(at, [row["examples_per_second"] / first for row in group], height, color=color)
        right.bar_label(rates, [cells(row)[2] for row in group], fontsize=7, padding=2)
    left.set_yticks(range(len(names)), [TITLES[name] for name in names])
    left.invert_yaxis()
    left.set_xlabel("MFU of a training step, % (medians)")
    right.set_xlabel("examples/s, first row = 1")
    for axes in (left, right):
        axes.margins(x=0.12)
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, ncols=len(groups), loc="outside upper center")
    figure.savefig(path)
