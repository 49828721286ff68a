"""The most MFU that H100 and B200 could show on the ladder of `experiments.mfu`: ``python -m experiments.mfu_bound``.

Bounds from counted work and the datasheet, no forecasts: nothing was run, and a measurement must come out lower. A step
takes at least the sum of

* for each call of an operator, forward and backward, its roofline (`pallas_kernels.roofline`): FLOPs, bytes, or the
  exponentials of a softmax on the special-function units, whichever takes longest (GDPA's activation counts nothing,
  since a kernel may take it from polynomials);
* FLOPs of all other maps, three forward passes, at the peak;
* 28 bytes for each dense parameter: an Adam step reads gradient, parameter and two moments and writes the latter three.

which holds for kernels that run one after the other. What the maps move, embeddings and tables, norms, and the start
of each kernel are left out, so the true time is longer. A row that pads works on rectangles of the longest history, and
its operators move the scores besides: 2 bytes for each pair and head, twice forward (written and read) and four times
backward; no backward pass computes scores anew, so it has four products instead of five. MFU counts useful FLOPs as
everywhere: three forward passes over valid events.

Takes half a minute on a CPU and writes ``experiments/results/roofline/mfu_bound.json`` and a picture beside it.
Expected for base with full histories on H100: at most 17% for the first row and 55% for the last; on either chip every
row that does not pad in all operators has a higher bound than those that do.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from flax import nnx
from matplotlib.figure import Figure

from experiments.mfu_ladder import SIZES, TITLES, Rung, kunlun_of, ladder, synthetic_schema
from experiments.random_batches import Lengths, longest_history, random_batch
from experiments.result_rows import RESULTS, measured_in
from kunlun_jax import flops
from kunlun_jax.models.system import System
from kunlun_jax.nn.attention import WHOLE_HISTORY, WindowAttention
from kunlun_jax.nn.ffn import PersonalizedFFN
from kunlun_jax.nn.personalized_linear import PersonalizedLinear
from kunlun_jax.nn.pooling import SeedAttention
from kunlun_jax.training.run_directory import write_atomic
from pallas_kernels import roofline
from pallas_kernels.chips import B200, H100, Chip
from pallas_kernels.costs import Cost
from pallas_kernels.operators.gdpa import shapes as gdpa_shapes
from pallas_kernels.operators.seed_attention import shapes as seed_shapes
from pallas_kernels.operators.window_attention import shapes as window_shapes

CHIPS = (H100, B200)
ITEMSIZE = 2
"""Bytes of an element of the operands: bfloat16."""
OPTIMIZER_BYTES = 28
"""For each dense parameter, see above."""
Counts = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of the bounds."""

    sizes: tuple[Literal["base", "large", "small", "tiny"], ...] = ("base", "large")
    """Presets of the whole of Kunlun; histories are cut as theirs are (500 and 1000 events of each type)."""
    lengths: tuple[Lengths, ...] = ("jagged", "full")
    """Lengths of histories, as in experiments.mfu."""
    batch: int = 1024
    """Examples of a batch."""
    out: Path = RESULTS / "roofline/mfu_bound.json"
    """JSON file of the rows; the picture goes beside it."""
    dirty: bool = False
    """Count in code with uncommitted changes."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an operator in a forward pass.

    Attributes:
      cost: counted work.
      heads, activation: as `roofline.limit` wants them.
      products: matrix products forward; 1 where a padded program does with one, else 2.
    """

    cost: Cost
    heads: int
    activation: str
    products: int = 2


def calls(model: System, lengths: Counts, pads: bool) -> Iterator[tuple[str, Call]]:
    """(operator, call) for every call in a forward pass over histories of these lengths, padded or as they are."""
    for path, module in nnx.iter_modules(model):
        name = next((str(part) for part in path if part in lengths), None)
        if name is None:
            continue
        n = lengths[name]
        if isinstance(module, PersonalizedFFN):
            cost = gdpa_shapes.cost(n, keys=module.width, heads=module.heads, dim=module.dim // module.heads)
            yield "gdpa", Call(cost, module.heads, module.activation)
        elif isinstance(module, PersonalizedLinear):
            cost = gdpa_shapes.cost(n, keys=module.dim, heads=1, dim=module.dim)
            yield "gdpa", Call(cost, 1, "identity", 1 if pads else 2)
        elif isinstance(module, WindowAttention):
            side = WHOLE_HISTORY if pads else module.window
            cost = window_shapes.cost(n, window=(side, side), heads=module.heads, dim=module.dim // module.heads)
            yield "attention", Call(cost, module.heads, "softmax")
        elif isinstance(module, SeedAttention):
            seeds = module.seeds.shape[0]
            cost = seed_shapes.cost(n, seeds=seeds, heads=module.heads, dim=module.dim // module.heads)
            yield "attention", Call(cost, module.heads, "softmax")


def padded(call: Call) -> Call:
    """The same call of a program that keeps scores in memory, on rectangles, which `calls` has counted."""
    cost, scores = call.cost, ITEMSIZE * call.heads * call.cost.pairs if call.products == 2 else 0
    return dataclasses.replace(
        call,
        cost=cost._replace(
            forward_flops=cost.forward_flops * call.products // 2,
            backward_flops=cost.forward_flops * call.products,
            forward_bytes=cost.forward_bytes + 2 * scores,
            backward_bytes=cost.backward_bytes + 4 * scores,
        ),
    )


def seconds(call: Call, chip: Chip) -> float:
    """The least time of a call and its backward pass."""
    options = {"heads": call.heads, "activation": call.activation}
    options["polynomial"] = 0.0 if call.activation == "softmax" else 1.0
    return sum(roofline.limit(call.cost, pass_, chip, **options).seconds for pass_ in ("forward", "backward"))


def bound(rung: Rung, model: System, lengths: Counts, longest: int, chip: Chip) -> dict[str, Any]:
    """The bound of one row: seconds of a step by part, and MFU."""
    batch, more = len(next(iter(lengths.values()))), getattr(rung.model, "cls_tokens", 0)
    rectangles = {name: np.full_like(n, longest) for name, n in lengths.items()}
    worked = rectangles if rung.rectangles else lengths
    least: dict[str, float] = {"gdpa": 0.0, "attention": 0.0}
    own = 0  # useful FLOPs of operators, of which `parts` counts no others
    for (operator, valid), (_, whole) in zip(
        calls(model, {name: n + more for name, n in worked.items()}, False),
        calls(model, {name: n + more for name, n in rectangles.items()}, True),
        strict=True,
    ):
        pads = rung.pads == "all" or (rung.pads == operator == "gdpa")
        least[operator] += seconds(padded(whole) if pads else valid, chip)
        own += valid.cost.forward_flops * whole.products // 2
    parts = model.parts(worked)
    dense = flops.total_flops(parts) - own / batch
    parameters = sum(part.parameters for part in parts if part.name != "tables")
    least["other maps"] = flops.TRAINING_FACTOR * dense * batch / chip.flops
    least["optimizer"] = OPTIMIZER_BYTES * parameters / chip.bandwidth
    useful = flops.TRAINING_FACTOR * flops.total_flops(model.parts(lengths))
    total = sum(least.values())
    return {
        "useful_flops_per_example": useful,
        "least_seconds": least,
        "most_examples_per_second": batch / total,
        "mfu_bound": useful * batch / total / chip.flops,
    }


def bounds(size: str, lengths: Lengths, batch: int) -> list[dict[str, Any]]:
    """The rows of one setting, for each chip."""
    schema, config = synthetic_schema(), SIZES[size]
    packed = random_batch(schema, batch, config.loader.max_events, lengths)
    counts = {name: np.asarray(packed.events[name].lengths, np.int64) for name in packed.events}
    rows = []
    for name, rung in ladder(kunlun_of(size)).items():
        model = nnx.eval_shape(
            lambda rung=rung: rung.model.build(schema, base_rate=(0.1,) * len(schema.tasks), rngs=nnx.Rngs(0))
        )
        where = {"size": size, "lengths": lengths, "batch": batch, "name": name}
        for chip in CHIPS:
            rows.append({**where, "chip": chip.name, **bound(rung, model, counts, longest_history(packed), chip)})
    return rows


def of_setting(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, dict[str, dict[str, Any]]]]:
    """(size, lengths) -> row of the ladder -> chip -> its numbers."""
    found: dict[tuple[str, str], dict[str, dict[str, dict[str, Any]]]] = {}
    for row in rows:
        setting = found.setdefault((row["size"], row["lengths"]), {})
        setting.setdefault(row["name"], {})[row["chip"]] = row
    return found


def markdown(rows: list[dict[str, Any]]) -> str:
    """Most MFU by row, for each setting and chip."""
    settings, chips = of_setting(rows), [chip.name for chip in CHIPS]
    heads = [f"{size}, {lengths}, {chip.upper()}" for size, lengths in settings for chip in chips]
    lines = [f"| MFU at most | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, title in TITLES.items():
        cells = [f"{setting[name][chip]['mfu_bound']:.0%}" for setting in settings.values() for chip in chips]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> str:
    """The numbers for a person: most MFU, and where the least time of a step goes."""
    lines = []
    for (size, lengths), setting in of_setting(rows).items():
        for chip in CHIPS:
            parts = list(next(iter(setting.values()))[chip.name]["least_seconds"])
            lines.append(f"{size}, {lengths}, {chip.model}: bounds, not measurements; least milliseconds of a step")
            lines.append(f"  {'':28}{'MFU <':>8}{'examples/s <':>14}" + "".join(f"{part:>12}" for part in parts))
            for name, row in setting.items():
                least = "".join(f"{1e3 * row[chip.name]['least_seconds'][part]:12.2f}" for part in parts)
                share, rate = row[chip.name]["mfu_bound"], row[chip.name]["most_examples_per_second"]
                lines.append(f"  {TITLES[name]:28}{share:8.1%}{rate:14,.0f}{least}")
    return "\n".join(lines)


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Most MFU by row: a panel for each setting, a bar for each chip."""
    settings = of_setting(rows)
    figure = Figure(figsize=(3 + 2.3 * len(settings), 4.2), dpi=140, layout="constrained")
    panels = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
    for axes, ((size, lengths), setting) in zip(panels, settings.items(), strict=True):
        for number, (chip, color) in enumerate(zip(CHIPS, ("#2f6fb0", "#4a8c5c"), strict=True)):
            shares = [100 * row[chip.name]["mfu_bound"] for row in setting.values()]
            at = [place + (number - 0.5) * 0.4 for place in range(len(shares))]
            bars = axes.barh(at, shares, 0.4, color=color, label=chip.model)
            axes.bar_label(bars, [f"{share:.0f}" for share in shares], fontsize=7, padding=2)
        axes.set_title(f"{size}, {lengths}", fontsize=10)
        axes.set_xlim(0, 100)
        axes.set_xlabel("% at most")
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(TITLES)), list(TITLES.values()))
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    title = "upper bounds of a training step's MFU by roofline: nothing was run"
    figure.legend(handles, labels, title=title, frameon=False, fontsize=8, ncols=2, loc="outside upper center")
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> int:
    """Parses flags, counts, prints, writes and draws; returns the exit code."""
    args = tyro.cli(Arguments, args=arguments, prog="experiments.mfu_bound", description=__doc__)
    try:
        counted_in = measured_in(args.dirty)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [row for size in args.sizes for lengths in args.lengths for row in bounds(size, lengths, args.batch)]
    print(table(rows))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(args.out, json.dumps({"environment": counted_in, "rows": rows}, indent=1) + "\n")
    picture(rows, args.out.with_suffix(".png"))
    print(f"written to {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
