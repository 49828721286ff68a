"""The picture of a run, made only from its ``metrics.jsonl``."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from kunlun_jax.training import json_lines
from kunlun_jax.training.metrics import ne_names

COLORS = ("#2f6fb0", "#c8553d", "#4a8c5c", "#8661a8", "#a7792b")
MARKERS = {"valid": "o", "test": "D"}
SMOOTHING = 1 / 40
"""Part of the training lines that the smooth curve averages over."""
MIN_SMOOTHING = 4
"""Lines that it averages over at least."""


def learning_curve(metrics_jsonl: Path, out_png: Path, floor: float | None, title: str) -> None:
    """Draws NE over examples, and examples per second below it.

    Args:
      metrics_jsonl: as `json_lines` writes it, lines with ``kind``, ``examples`` and ``ne`` (or ``task/ne``, one curve
        each); "train" lines have ``examples_per_second``, "eval" lines ``split``.
      out_png: the picture to write; its folder must exist.
      floor: lowest NE that any model can reach on the data, where that is known.
      title: stands above the picture.

    Raises:
      ValueError: there is no training line, or a line is not as it was written.
    """
    lines = json_lines.read(Path(metrics_jsonl))
    train = [line for line in lines if line["kind"] == "train"]
    if not train:
        raise ValueError(f"{metrics_jsonl} has {len(lines)} lines, none of kind 'train': there is no curve to plot")
    splits = list(dict.fromkeys(line["split"] for line in lines if line["kind"] == "eval"))
    names = ne_names(train[0])

    figure = Figure(figsize=(8, 5.6), dpi=140, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    examples = _column(train, "examples")
    window = np.diff(examples, prepend=0.0)  # the last line stands for fewer examples than the others
    shown = [] if floor is None else [floor]
    for name, color in zip(names, _cycle(COLORS), strict=False):
        task = f"{name.removesuffix('/ne')} " if "/" in name else ""
        values = _column(train, name)
        smooth = running_mean(values, window, max(MIN_SMOOTHING, round(len(values) * SMOOTHING)))
        top.plot(examples, values, color=color, alpha=0.25, linewidth=0.8)
        top.plot(examples, smooth, color=color, linewidth=1.8, label=f"{task}train (smoothed)")
        shown.append(_quantile(smooth, 0.95))
        shown.append(_quantile(smooth, 0.0))
        for split in splits:
            points = [line for line in lines if line["kind"] == "eval" and line["split"] == split]
            at, values = _column(points, "examples"), _column(points, name)
            last = "" if not len(values) else " undefined" if np.isnan(values[-1]) else f" {values[-1]:.4f}"
            style = {"color": "black" if len(names) == 1 else color, "marker": MARKERS.get(split, "s")}
            top.plot(at, values, label=f"{task}{split}{last}", markersize=5, linewidth=1, linestyle=":", **style)
            shown.extend(values)
    if floor is not None:
        top.axhline(floor, color="#666666", linewidth=1.2, linestyle="--", label=f"floor {floor:.4f}")
    _limit(top, shown)
    top.set_ylabel("NE (lower is better)")
    top.set_title(title, fontsize=11)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=4)

    bottom.plot(examples, _column(train, "examples_per_second"), color="#555555", linewidth=1.2)
    bottom.set_ylim(bottom=0)
    bottom.set_ylabel("examples / s")
    bottom.set_xlabel("training examples")
    bottom.set_xlim(left=0)
    for axes in (top, bottom):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    for axis in (bottom.xaxis, bottom.yaxis):
        axis.set_major_formatter(EngFormatter(sep=""))
    figure.savefig(out_png)


def running_mean(
    values: Float64[np.ndarray, " points"], weights: Float64[np.ndarray, " points"], width: int
) -> Float64[np.ndarray, " points"]:
    """Weighted mean of the last `width` values up to each point, fewer at the start; a NaN is left out of it."""
    weights = np.where(np.isnan(values), 0.0, weights)
    columns = (np.where(weights > 0, values, 0.0) * weights, weights)
    total, weight = (np.convolve(column, np.ones(width))[: len(values)] for column in columns)
    return np.divide(total, weight, out=np.full(len(values), np.nan), where=weight > 0)


def _column(lines: Iterable[dict[str, Any]], name: str) -> Float64[np.ndarray, " points"]:
    """A field of each line; what is absent or undefined is NaN, which is not drawn."""
    return np.array([np.nan if line.get(name) is None else line[name] for line in lines], np.float64)


def _cycle(colors: tuple[str, ...]) -> Iterable[str]:
    while True:
        yield from colors


def _quantile(values: np.ndarray, part: float) -> float:
    known = values[~np.isnan(values)]
    return float(np.quantile(known, part)) if len(known) else np.nan


def _limit(axes: Axes, shown: list[float]) -> None:
    """Limits that hold what matters; the first steps of training may leave the picture at the top."""
    known = [value for value in shown if np.isfinite(value)]
    if known:
        low, high = min(known), max(known)
        margin = max(0.05 * (high - low), 1e-3)
        axes.set_ylim(low - margin, high + 2 * margin)
