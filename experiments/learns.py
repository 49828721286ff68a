"""Does it learn from histories? ``python -m experiments.learns``: Kunlun and reference models on the same rows.

Trains every system on 37,500, 150,000 and 600,000 rows of the synthetic world, one pass, and prints NE beside the
least possible (the floor of the same rows). Whatever a system is worse by than the trees with match counts, it failed
to find in the histories.

    lr, lr-matches                          logistic regression: no histories; match counts and lengths
    trees, trees-lengths, trees-matches     LightGBM: no histories; their lengths; match counts and lengths
    din, pooled-product                     neural, candidate and events in one table's coordinates
    kunlun                                  preset kunlun/small

Each row is written to ``experiments/results/cpu/learns.json`` as soon as it is done, with command, commit and versions,
and is not run again: an interrupted run resumes with the same command, and a complete one just prints the table and
draws ``learns.png``. To measure a system again, delete its rows.

Needs the extra "dev". Per seed, on two CPU cores shared with other work: Kunlun takes six minutes at 150,000 rows and
19 at 600,000, DIN and the pooled product one to two and five to seven (the file has the seconds of each row).
"""

import dataclasses
import functools
import statistics
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

from experiments import shallow
from experiments.boosted_trees import boosted_trees
from experiments.compilation import keep_compiled
from experiments.configs import PRESETS
from experiments.configs.kunlun import small
from experiments.result_rows import add, diverged, measured_in, of_commit, stored, train_row
from kunlun_jax.data.dataset import Dataset
from kunlun_jax.data.sets import synthetic
from kunlun_jax.data.sets.synthetic import SyntheticConfig
from kunlun_jax.training.config import TrainConfig
from kunlun_jax.training.metrics import evaluate_predictions

SHALLOW: dict[str, tuple[Callable, tuple[shallow.History, ...]]] = {
    "lr": (shallow.logistic_regression, ()),
    "lr-matches": (shallow.logistic_regression, ("lengths", "matches")),
    "trees": (boosted_trees, ()),
    "trees-lengths": (boosted_trees, ("lengths",)),
    "trees-matches": (boosted_trees, ("lengths", "matches")),
}
"""Name -> how to fit it, and what of the histories it reads."""
NEURAL = {"din": "din/small", "pooled-product": "pooled_product/small", "kunlun": "kunlun/small"}
"""Name -> preset."""
SYSTEMS = (*SHALLOW, *NEURAL)
SEEDLESS = ("lr", "lr-matches")
"""Systems that come out the same for every seed: they run once, as seed 0."""
STYLES = {
    "lr": ("#a7792b", ":"),
    "lr-matches": ("#a7792b", "-"),
    "trees": ("#4a8c5c", ":"),
    "trees-lengths": ("#4a8c5c", "--"),
    "trees-matches": ("#4a8c5c", "-"),
    "din": ("#8661a8", "-"),
    "pooled-product": ("#2f6fb0", "-"),
    "kunlun": ("#c8553d", "-"),
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of the comparison."""

    rows: tuple[int, ...] = (37_500, 150_000, 600_000)
    """Training rows, spread over the same 28 days whatever their number; valid and test rows are always the same."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of parameters and of the trees' choice of columns; the world stays the same."""
    systems: tuple[str, ...] = SYSTEMS
    """Systems to run, names as above."""
    world: SyntheticConfig = small.WORLD
    """The synthetic world, that of preset kunlun/small; --rows stands in for its train_rows."""
    out: Path = Path("experiments/results/cpu/learns.json")
    """JSON file of the rows; the picture goes beside it."""
    runs: Path = Path("runs/learns")
    """Folder for run directories of neural systems; each is deleted once its row is stored."""
    dirty: bool = False
    """Measure code with uncommitted changes."""

    def __post_init__(self):
        unknown = sorted(set(self.systems) - set(SYSTEMS))
        if unknown:
            raise ValueError(f"systems names {unknown}; there are {list(SYSTEMS)}")
        for name, least in (("rows", 1), ("seeds", 0)):
            values = getattr(self, name)
            if not values or min(values) < least:
                raise ValueError(f"{name} is {values}; name at least one number, none below {least}")


@functools.lru_cache(maxsize=1)
def world_of(config: SyntheticConfig) -> tuple[Dataset, dict[str, float]]:
    """The data set, and the floor of NE by split."""
    dataset = synthetic.open_dataset(config)
    floors = {split: dataset.floor(split) for split in ("valid", "test")}
    return dataset, {split: floor for split, floor in floors.items() if floor is not None}


@functools.lru_cache(maxsize=1)
def shallow_inputs(config: SyntheticConfig) -> dict[str, shallow.Inputs]:
    """What the shallow models read, with histories cut as the neural systems' loader cuts them."""
    dataset, _ = world_of(config)
    return shallow.read(dataset, small.CONFIG.loader.max_events_by_type(dataset.schema))


def run_shallow(system: str, config: SyntheticConfig, seed: int) -> dict[str, Any]:
    """Fits one shallow system: metrics by split, and what was chosen on "valid"."""
    fit, history = SHALLOW[system]
    data, (dataset, _) = shallow_inputs(config), world_of(config)
    logits, chosen = fit(data, history, seed)
    metrics = {
        split: evaluate_predictions(data[split].labels, values, data[split].weights, p_train=dataset.p_train[0])
        for split, values in logits.items()
    }
    return {**metrics, "chosen": chosen}


def run_neural(preset: TrainConfig, config: SyntheticConfig, seed: int, folder: Path) -> dict[str, Any]:
    """Trains `preset` on a world in the run directory `folder`: metrics by split; none, and "diverged", if it did."""
    dataset, _ = world_of(config)
    preset = dataclasses.replace(
        preset,
        data=dataclasses.replace(preset.data, options=config),
        run=dataclasses.replace(preset.run, eval_splits=("valid", "test")),
    )
    found = train_row({"seed": seed}, preset, dataset, folder)
    return {**found.pop("splits"), **found}


def measure(system: str, config: SyntheticConfig, seed: int, folder: Path) -> dict[str, Any]:
    """What is stored of a system trained on some rows from a seed; `folder` is a neural one's run directory."""
    if system in SHALLOW:
        found = run_shallow(system, config, seed)
    else:
        found = run_neural(PRESETS[NEURAL[system]][1], config, seed, folder)
    kept = ("ne", "logloss", "auc", "calibration", "rows")
    return found | {
        split: {name: found[split][name] for name in kept if name in found[split]}
        for split in ("valid", "test")
        if split in found
    }


def key_of(row: dict[str, Any]) -> tuple:
    """What makes two rows the same measurement, in the order of the table."""
    return row["rows"], SYSTEMS.index(row["system"]), row["seed"], row["data"]


def grouped(rows: list[dict[str, Any]]) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """The rows of all seeds by number of training rows and system, without runs that diverged."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in rows:
        if diverged(row):
            continue
        groups.setdefault((row["rows"], row["system"]), []).append(row)
    return groups


def mean_of(group: list[dict[str, Any]], split: str) -> float:
    """Mean NE of the seeds."""
    return statistics.fmean(row[split]["ne"] for row in group)


def table(rows: list[dict[str, Any]]) -> str:
    """The numbers for a person."""
    lines = [
        f"{'rows':>9}  {'system':15} {'test NE':>8} {'floor':>6} {'above':>6} {'valid NE':>8} {'s':>5}  test by seed"
    ]
    for (count, system), group in grouped(rows).items():
        test, floor = mean_of(group, "test"), group[0]["floor"]["test"]
        seeds = " ".join(f"{row['seed']}: {row['test']['ne']:.4f}" for row in group)
        seconds = statistics.fmean(row["seconds"] for row in group)
        lines.append(
            f"{count:9,}  {system:15} {test:8.4f} {floor:6.4f} {test - floor:6.4f} {mean_of(group, 'valid'):8.4f} "
            f"{seconds:5.0f}  {seeds}"
        )
    lines += [f"{row['rows']:9,}  {row['system']:15} seed {row['seed']}: {row['diverged']}" for row in lost(rows)]
    return "\n".join(lines)


def lost(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of runs that diverged."""
    return [row for row in rows if diverged(row)]


def markdown(rows: list[dict[str, Any]]) -> str:
    """Test NE by system and training rows: mean of the seeds, how many there are if not one, how many diverged."""
    groups, counts = grouped(rows), sorted({row["rows"] for row in rows})
    floors = {row["rows"]: row["floor"]["test"] for row in rows}
    lines = [f"| test NE | {' | '.join(f'{count:,} rows' for count in counts)} |", "|---" * (len(counts) + 1) + "|"]
    for system in SYSTEMS:
        if not any(row["system"] == system for row in rows):
            continue
        cells = []
        for count in counts:
            group = groups.get((count, system), [])
            many = f" ({len(group)} seeds)" if len(group) > 1 else ""
            gone = sum((row["rows"], row["system"]) == (count, system) for row in lost(rows))
            mean = f"{mean_of(group, 'test'):.4f}{many}" if group else ""
            cells.append((mean + f" ({gone} diverged)" * bool(gone)).strip())
        lines.append(f"| {system} | {' | '.join(cells)} |")
    lines.append(f"| floor | {' | '.join(f'{floors[count]:.4f}' for count in counts)} |")
    return "\n".join(lines)


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """NE of the test split over training rows: a line for each system, a dot for each seed, the floor below."""
    figure = Figure(figsize=(8, 5), dpi=140, layout="constrained")
    axes = figure.subplots()
    counts = sorted({row["rows"] for row in rows})
    groups = grouped(rows)
    for system in SYSTEMS:
        at = [count for count in counts if (count, system) in groups]
        if not at:
            continue
        color, line = STYLES[system]
        values = [mean_of(groups[count, system], "test") for count in at]
        axes.plot(at, values, line, color=color, linewidth=1.8, label=f"{system} {values[-1]:.3f}")
        dots = [(count, row["test"]["ne"]) for count in at for row in groups[count, system]]
        axes.plot(*zip(*dots, strict=True), "o", color=color, markersize=4)
    floors = {row["rows"]: row["floor"]["test"] for row in rows}
    low = [floors[count] for count in counts]
    axes.plot(counts, low, color="#666666", linewidth=1.2, linestyle=(0, (5, 2)), label=f"floor {low[-1]:.3f}")
    axes.set_xscale("log")
    axes.set_xticks(counts)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("training rows")
    axes.set_ylabel("test NE (lower is better)")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=9, loc="outside right center", title="NE at its most rows")
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> int:
    """Parses flags, runs what is missing, prints and draws; returns the exit code."""
    args = tyro.cli(Arguments, args=arguments, prog="experiments.learns", description=__doc__)
    # Now, not when a row is done: the code that runs is what was there at the start.
    try:
        started_in = measured_in(args.dirty)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    started_in["versions"] |= {name: metadata.version(name) for name in ("scikit-learn", "lightgbm")}
    keep_compiled(None)
    shown = []
    for count in sorted(set(args.rows)):
        config = dataclasses.replace(args.world, train_rows=count)
        fingerprint = synthetic.fingerprint(config)
        shown.append(fingerprint)
        for system in args.systems:
            for seed in (0,) if system in SEEDLESS else args.seeds:
                row = {"system": system, "rows": count, "seed": seed, "data": fingerprint}
                if key_of(row) in map(key_of, stored(args.out)):
                    continue
                print(f"{system}, {count:,} rows, seed {seed}: measuring", file=sys.stderr)
                row["floor"] = world_of(config)[1]
                folder = args.runs / f"{system}-{fingerprint}-seed{seed}-{of_commit(started_in['commit'])}"
                if system in SHALLOW:
                    shallow_inputs(config)  # read once for all, so not in the time of the first
                run = functools.partial(measure, system, config, seed, folder)
                row = add(args.out, row, key_of, started_in, run, None if system in SHALLOW else folder)
                result = row["diverged"] if diverged(row) else f"test NE {row['test']['ne']:.4f}"
                print(f"{system}, {count:,} rows, seed {seed}: {result}", file=sys.stderr)
    rows = [row for row in stored(args.out) if row["data"] in shown]
    print(table(rows))
    picture(rows, args.out.with_suffix(".png"))
    print(f"rows in {args.out}, picture in {args.out.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
