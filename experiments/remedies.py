"""What is each remedy worth? ``python -m experiments.remedies``: preset kunlun/small with one of them taken out.

Kunlun once learned from the synthetic world's histories little more than how long they are; LOG.md tells why. What
mends it is a field of the config each, and this takes them out one by one: test NE of preset kunlun/small on 150,000
rows, one pass, less that of the whole preset with the same seed. The difference between two seeds of one config, in
the same table, tells which of them say nothing.

Rows go into ``experiments/results/cpu/remedies.json`` as soon as they are done and are not run again, as those of
`experiments.learns`, whose reference models the table is to be read beside. The whole table has not been run yet.
"""

import dataclasses
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import tyro
from matplotlib.figure import Figure

from experiments.configs.kunlun import small
from experiments.learns import key_of, row_of, run_neural, store, stored
from kunlun_jax.data.sets import synthetic
from kunlun_jax.data.sets.synthetic import SyntheticConfig
from kunlun_jax.models.config import KunlunConfig
from kunlun_jax.training.run_directory import environment

MODEL = small.CONFIG.model
assert isinstance(MODEL, KunlunConfig)
REMEDIES: dict[str, dict[str, Any]] = {
    "whole": {},
    "pools before the FFN": {"order": "pool_first"},
    "X_sum in the interaction": {"interaction_context": "summary"},
    "no tied path": {"tied_events": False},
    "no unit products": {"unit_products": False},
    "no residual in X_sum": {"summary_residual": False},
    "random start of maps": {"aligned": False},
    "no lengths": {"history_lengths": False},
    "no ranks of events": {"rank_feature": False},
    "no ranks in HSP": {"pool_ranks": False},
    "no counts in HSP": {"pool_counts": False},
    "no free part of V": {"ffn_free_values": 0.0},
    "scale after the activation": {"ffn_scale": "post"},
    "tau 32": {"ffn_tau": 32.0},
    "embeddings at .05": {"embedding_scale": 0.05},
    "MLP of events at full size": {"event_mlp_start": 1.0},
    "head reads the last layer": {"head_reads": "last"},
    "one layer": {"layers": 1},
    "half as wide": {"dim": 16, "embedding_dim": 16, "event": dataclasses.replace(MODEL.event, dim=16)},
    "no histories": {"skip_events": ("*",)},
}
"""Name -> fields of the model's config that are changed."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of the comparison."""

    rows: int = 150_000
    """Training rows."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of parameters; the world stays the same."""
    remedies: tuple[str, ...] = tuple(REMEDIES)
    """What to take out, names as in the table."""
    out: Path = Path("experiments/results/cpu/remedies.json")
    """JSON file of the rows; the picture goes beside it."""
    runs: Path = Path("runs/remedies")
    """Folder for run directories; each is deleted once its row is stored."""

    def __post_init__(self):
        unknown = sorted(set(self.remedies) - set(REMEDIES))
        if unknown:
            raise ValueError(f"remedies names {unknown}; there are {list(REMEDIES)}")


def measure(name: str, config: SyntheticConfig, seed: int, runs: Path, started_in: dict[str, Any]) -> dict[str, Any]:
    """One row."""
    preset = dataclasses.replace(small.CONFIG, model=dataclasses.replace(MODEL, **REMEDIES[name]))
    began = time.monotonic()
    found = run_neural(name.replace(" ", "-"), preset, config, seed, runs, started_in["commit"])
    return row_of(name, config, seed, found, began, started_in)


def differences(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Name -> test NE less that of the whole with the same seed, seed by seed."""
    whole = {row["seed"]: row["test"]["ne"] for row in rows if row["system"] == "whole"}
    found = {
        name: [row["test"]["ne"] - whole[row["seed"]] for row in rows if row["system"] == name and row["seed"] in whole]
        for name in REMEDIES
    }
    return {name: values for name, values in found.items() if values}


def table(rows: list[dict[str, Any]]) -> str:
    """The numbers for a person."""
    lines = [f"{'taken out':28} {'test NE':>8} {'worse by':>9}  by seed"]
    for name, values in differences(rows).items():
        ne = statistics.fmean(row["test"]["ne"] for row in rows if row["system"] == name)
        seeds = " ".join(f"{value:+.4f}" for value in values)
        lines.append(f"{name:28} {ne:8.4f} {statistics.fmean(values):+9.4f}  {seeds}")
    return "\n".join(lines)


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """How much worse without each, a bar for the mean and a dot for each seed."""
    found = {name: values for name, values in differences(rows).items() if name != "whole"}
    figure = Figure(figsize=(7, 0.32 * len(found) + 1.2), dpi=140, layout="constrained")
    axes = figure.subplots()
    for place, values in enumerate(found.values()):
        axes.barh(place, statistics.fmean(values), color="#c8553d", height=0.55)
        axes.plot(values, [place] * len(values), "o", color="#333333", markersize=3.5)
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.axvline(0, color="#666666", linewidth=0.8)
    axes.set_xlabel("test NE above the whole preset's (to the right: the remedy helps)")
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> int:
    """Parses flags, runs what is missing, prints and draws; returns the exit code."""
    args = tyro.cli(Arguments, args=arguments, prog="experiments.remedies", description=__doc__)
    config = dataclasses.replace(small.WORLD, train_rows=args.rows)
    fingerprint = synthetic.fingerprint(config)
    started_in = environment()
    for name in args.remedies:
        for seed in args.seeds:
            if (name, args.rows, seed, fingerprint) in map(key_of, stored(args.out)):
                continue
            row = measure(name, config, seed, args.runs, started_in)
            store(args.out, row, tuple(REMEDIES))
            print(f"{name}, seed {seed}: test NE {row['test']['ne']:.4f}", file=sys.stderr)
    rows = [row for row in stored(args.out) if row["data"] == fingerprint]
    print(table(rows))
    picture(rows, args.out.with_suffix(".png"))
    print(f"rows in {args.out}, picture in {args.out.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
