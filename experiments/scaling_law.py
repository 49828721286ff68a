"""The scaling law, measured: ``python -m experiments.scaling_law --budget cpu``.

Trains six sizes of Kunlun, InterFormer, Wukong, HSTU and DIN over two decades of useful FLOPs per example, one pass
over the same 150,000 rows of the synthetic world, three seeds (`experiments.scaling_families`). Then fits how NE falls
with FLOPs (`kunlun_jax.scaling`), and says how much more of it a decade gains Kunlun than InterFormer; the paper says
two times as much. Each system's learning rates are found at two of its sizes (`experiments.scaling_plan`), which takes
more runs than are counted here where the best rate is at an end of the first three.

    --budget tiny   two sizes of Wukong and DIN on 200 rows, to see that it works: 4 runs, two minutes on a CPU core
    --budget cpu    110 runs, 5.8 hours on two cores by the speeds in results/cpu/systems.json, the longest 12 minutes
    --budget gpu    44 runs of Kunlun and InterFormer, in pieces of 8.5 minutes; never run, so there is no estimate

``--systems kunlun interformer`` runs these alone and ``--seeds 1`` that seed. Several calls may run at once, say one
for each core of a machine: each takes runs that no other one has.

``--data movielens --root ml-1m`` takes as many rows of MovieLens-1M instead, a quarter of them, drawn by the seed. A
run that diverges is stored as such, counts as the worst of its rate and is in no law. A call ends after --minutes, in
the middle of a run if it must, and the same command goes on there; with ``--minutes 0`` it runs nothing.
Rows are stored in ``experiments/results/DEVICE/scaling_law.json`` as soon as they are done, with command, commit and
versions, and are not run again. At its end a call prints what is missing, and prints and draws what there is.
"""

import dataclasses
import functools
import signal
import sys
from pathlib import Path
from typing import Literal

import jax
import tyro

from experiments import scaling_report
from experiments.compilation import keep_compiled
from experiments.result_rows import RESULTS, add, diverged, measured_in, run_folder, stored, train_row
from experiments.scaling_plan import BUDGETS, FILES, Data, Planned, check_data, current, key_of, missing, seconds
from kunlun_jax.data.dataset import Dataset
from kunlun_jax.data.open import open_dataset
from kunlun_jax.training.run_directory import RunInUse

REPEAT_S = 5.0
"""After its end a call asks the run to stop again and again, for one that is being compiled does not hear it."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of the measurement."""

    budget: Literal["tiny", "cpu", "gpu"] = "cpu"
    """What is run, as above."""
    data: Data = "synthetic"
    """The rows that are trained on."""
    systems: tuple[str, ...] = ()
    """Systems whose runs are done; default: all of the budget."""
    seeds: tuple[int, ...] = ()
    """Seeds whose runs are done; default: all of the budget. The search for rates is of seed 0, and others wait for
    it."""
    root: Path | None = None
    """Folder of MovieLens-1M; for --data movielens alone."""
    cache: Path | None = None
    """Folder for prepared data and compiled programs; default KUNLUN_CACHE, else ~/.cache/kunlun_jax."""
    minutes: float | None = None
    """Minutes after which a call ends; default 5 (tiny), 15 (cpu) or 8.5 (gpu)."""
    out: Path | None = None
    """JSON file of the rows; default experiments/results/DEVICE/scaling_law.json, scaling_law_movielens.json for
    MovieLens, and runs/scaling_law_tiny.json for tiny. The picture goes beside it."""
    runs: Path = Path("runs/scaling_law")
    """Folder for run directories; each is deleted once its row is stored."""
    dirty: bool = False
    """Measure code with uncommitted changes."""

    def __post_init__(self):
        if self.minutes is not None and not self.minutes >= 0:
            raise ValueError(f"minutes is {self.minutes}; it must be at least 0")
        check_data(self.budget, self.data, self.root)
        budget = BUDGETS[self.budget]
        for field, of_budget in (("systems", budget.systems), ("seeds", budget.seeds)):
            if unknown := sorted({*getattr(self, field)} - {*of_budget}):
                raise ValueError(f"{field} names {unknown}; budget {self.budget!r} has {list(of_budget)}")

    @property
    def path(self) -> Path:
        """The file of rows."""
        name = FILES[self.data]
        tiny, usual = Path("runs") / f"{name}_tiny.json", RESULTS / jax.default_backend() / f"{name}.json"
        return self.out or (tiny if self.budget == "tiny" else usual)


class Deadline:
    """Stops a training run, once `minutes` are over, as SIGTERM does: at the next batch, with a checkpoint.

    Attributes:
      over: whether they are.
    """

    def __init__(self, minutes: float):
        self.minutes, self.over = minutes, minutes == 0

    def __enter__(self) -> "Deadline":
        self._old = signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, 60 * self.minutes, REPEAT_S)
        return self

    def __exit__(self, *_) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._old)

    def _ring(self, *_) -> None:
        self.over = True
        # A run listens to it; between runs nobody does, and `over` is looked at.
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            signal.raise_signal(signal.SIGTERM)


def measure(args: Arguments, dataset: Dataset) -> None:
    """Runs what is missing until it is done, or other calls are at what is left, or the minutes are over."""
    budget = BUDGETS[args.budget]
    keep_compiled(args.cache)
    # Now, not when a row is done: the code that runs is what was there at the start.
    started_in = measured_in(args.dirty)
    with Deadline(budget.minutes if args.minutes is None else args.minutes) as deadline:
        others: set[Planned] = set()
        while not deadline.over:
            ready = [
                run
                for run in missing(budget, stored(args.path), args.data, dataset.fingerprint)
                if run.rate is not None
                and run.system in (args.systems or budget.systems)
                and run.seed in (args.seeds or budget.seeds)
            ]
            run = next((run for run in ready if run not in others), None)
            if run is None:
                return
            row = run.row(budget, args.data, dataset.fingerprint)
            config = run.config(budget, args.data, args.root, args.cache)
            folder = run_folder(row, args.runs / "law", started_in["commit"])
            train = functools.partial(train_row, row, config, dataset, folder)
            print(f"{row['name']}, seed {row['seed']}: measuring {row['flags']}", file=sys.stderr)
            try:
                row = add(args.path, row, key_of, started_in, train, folder)
            except RunInUse:
                others.add(run)
                print(f"{row['name']}, seed {row['seed']}: another call is at it", file=sys.stderr)
            except KeyboardInterrupt:
                if not deadline.over:
                    raise
                print(f"{row['name']}, seed {row['seed']}: cut off; the same command goes on there", file=sys.stderr)
            else:
                found = row["diverged"] if diverged(row) else f"test NE {row['splits']['test']['ne']:.4f}"
                print(f"{row['name']}, seed {row['seed']}: {found} in {row['seconds']:.0f} s", file=sys.stderr)


def left(args: Arguments, dataset: Dataset) -> str:
    """What is missing, and on a CPU about how long it takes."""
    budget = BUDGETS[args.budget]
    rows = current(stored(args.path), budget, args.data, dataset.fingerprint)
    runs = missing(budget, rows, args.data, dataset.fingerprint)
    if not runs or jax.default_backend() != "cpu":
        return f"{len(runs)} runs are missing"
    each = functools.cache(
        lambda system, size: seconds(Planned(system, size, None, 0), budget, args.data, rows, dataset)
    )
    hours = sum(each(run.system, run.size) for run in runs) / 3600
    return f"{len(runs)} runs are missing, about {hours:.1f} hours on two cores"


def main(arguments: list[str] | None = None) -> int:
    """Parses flags, runs, prints and draws; returns the exit code."""
    args = tyro.cli(Arguments, args=arguments, prog="experiments.scaling_law", description=__doc__)
    budget = BUDGETS[args.budget]
    try:
        first = Planned(budget.systems[0], 0, None, 0)
        dataset = open_dataset(first.config(budget, args.data, args.root, args.cache).data)
        measure(args, dataset)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(left(args, dataset))
    every = stored(args.path)
    rows = current(every, budget, args.data, dataset.fingerprint)
    if len(rows) < len(every):
        print(f"{len(every) - len(rows)} rows of other sizes, budgets or data are left out", file=sys.stderr)
    if rows:
        print(scaling_report.markdown(rows, budget))
        scaling_report.picture(rows, budget, args.data, args.path.with_suffix(".png"))
        print(f"rows in {args.path}, picture in {args.path.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
