"""How fast are the kernels, and are they right? ``python -m experiments.kernels``; block sizes: ``... kernels tune``.

Every shape of the published tables on the device at hand, forward and backward: seconds, TFLOP/s by counted work, share
of the datasheet, of a matrix product measured in the same run, and of the roofline; beside each the error against
float32 in units of plain bf16's error, which must be 2 or less forward and 5 or less backward. Measured beside our
kernels: xla and two unfused matrix products; for windows and seeds cuDNN's attention (`jax.nn`) and PyTorch's
(flex_attention, and scaled_dot_product_attention with the window as a mask); tokamax's Mosaic attention where it is
installed; and Meta's Triton GDPA where --peers.ads-kernel-library names a checkout of
facebookresearch/ads_model_kernel_library. A peer that pads, skips nothing or computes another function says so.

Times are those of calls in a row on the host clock, the implementations taking turns, medians over rounds; where CUPTI
answers, the time of the kernels alone stands in the column "kernels". Backward is the pullback alone, given what the
forward pass saved: 10 H d N FLOPs whatever the kernel recomputes. What cannot run here has a row that says why.

Rows are written to ``experiments/results/<device>/kernels.json`` as they are measured, with a picture beside it at the
end; a second run measures what is missing, so --budget-s may cut a run anywhere. Without a GPU the shapes are toys and
the times say nothing about the kernels (half a minute). Exit code 1: a result is wrong; 75: the device was lost, start
again. All of it takes about half an hour on one GPU by estimate; that was not measured yet.

``tune`` measures block sizes of the Mosaic kernels for each kind of shape, in turn with the best so far, and writes the
best to ``pallas_kernels/operators/<operator>/tuning/<device>.json``, which the kernels read from then on.

``scaling`` shows that window attention takes time in proportion to rows times window: (100, 100) over sequences of 512
to 32k rows, with the exponent of a fit; ``experiments/results/<device>/window_scaling.json`` and a picture. Without a
GPU the XLA program up to 8k, two heads of 32 (three minutes).
"""

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import tyro

# Before the device is opened: other processes (Meta's kernels, say) need memory, too, and the largest shapes most.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")

import jax

from experiments.kernel_benchmark import cases, clock, implementations, processes, report, scaling, store, tune
from experiments.kernel_benchmark.run import Run


@dataclasses.dataclass(frozen=True)
class Peers:
    """Kernels of others that run in processes of their own."""

    ads_kernel_library: Path | None = None
    """Checkout of facebookresearch/ads_model_kernel_library; None leaves Meta's Triton GDPA out."""
    share: float = 0.3
    """Part of the budget for these; their compilation and autotuning take most of that. All of it if they are alone."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of the benchmark."""

    mode: Annotated[Literal["measure", "tune", "scaling"], tyro.conf.Positional] = "measure"
    """What to do: measure, tune block sizes, or show how window attention scales."""
    budget_s: float = 1800.0
    """Seconds after which nothing new is begun."""
    small: bool | None = None
    """Whether to take toy shapes; None does without a GPU."""
    implementations: tuple[str, ...] = ()
    """Which to measure, of ours (mosaic, xla and what else an operator has), unfused, cudnn, tokamax, meta-triton,
    flex, sdpa, and reference (toy shapes alone); none for all."""
    where: Literal["everywhere", "inside", "outside"] = "everywhere"
    """Which of these by where they run: inside this process, or outside it in ones of their own."""
    groups: tuple[str, ...] = ()
    """Groups of cases: "pffn 256", "self", "window", "seeds", "narrow", "pffn 128"; none for all."""
    rounds: int = 5
    """Rounds in which the implementations take turns; the median is reported."""
    call_limit_s: float = 90.0
    """Seconds that one call may take with its compilation; after that it has hung, and the process ends with 75."""
    retry: bool = False
    """Whether to try again what could not run."""
    fresh: bool = False
    """Whether to forget the results there are."""
    out: Path | None = None
    """JSON file for the results; None is kernels.json, tuning.json or window_scaling.json in
    ``experiments/results/<device>``."""
    peers: Peers = dataclasses.field(default_factory=Peers)

    def __post_init__(self):
        if self.rounds < 5:
            raise ValueError(f"rounds is {self.rounds}; a median of fewer than 5 says little")
        unknown = set(self.implementations) - {*implementations.NAMES, "reference"}
        if unknown:
            raise ValueError(f"implementations names {sorted(unknown)}; see --help for those there are")
        lacking = set(self.groups) - {case.group for case in cases.CASES}
        if lacking:
            raise ValueError(f"groups names {sorted(lacking)}; see --help for those there are")


def measure(args: Arguments, began: float) -> int:
    """Measures what is missing, prints the table and draws the picture; returns the exit code."""
    small = args.small if args.small is not None else jax.default_backend() != "gpu"
    chosen = tuple(x for x in (cases.TOYS if small else cases.CASES) if not args.groups or x.group in args.groups)
    names = args.implementations or (*implementations.NAMES, *(("reference",) if small else ()))
    path = args.out or store.RESULTS / store.slug(store.device_kind()) / "kernels.json"
    if args.where != "everywhere":
        names = tuple(name for name in names if (name in processes.NAMES) == (args.where == "outside"))
    results = store.Store(path, args.fresh)
    print(f"{store.device_kind()}, {'toy' if small else 'published'} shapes, {len(chosen)} cases -> {path}")
    before = clock.clocks()
    results.content["peaks"] = implementations.peaks(small)
    inside = tuple(name for name in names if name not in processes.NAMES)
    run = Run(results, chosen, inside, args.rounds, began + args.budget_s, args.call_limit_s, args.retry)
    # Processes of their own come first: what this one has taken of the device's memory it does not give back.
    share = 1.0 if args.where == "outside" else args.peers.share
    left = processes.run(run, names, args.peers.ads_kernel_library, args.budget_s * share)
    left += run()
    results.content["clocks"] = [before, clock.clocks()]
    results.write()
    order = [case.name for case in chosen]
    print(report.table(results.content, order))
    report.picture(results.content, order, path.with_suffix(".png"))
    return _end(results, path, order, left)


def show_scaling(args: Arguments, began: float) -> int:
    """Measures what is missing of the scaling of window attention, and fits and draws it; returns the exit code."""
    small = args.small if args.small is not None else jax.default_backend() != "gpu"
    chosen, names = scaling.cases_for(small), args.implementations or scaling.implementations_for(small)
    # A CPU that others use, too, needs more rounds until one of them is undisturbed.
    rounds, deadline = max(args.rounds, 15) if small else args.rounds, began + args.budget_s
    path = args.out or store.RESULTS / store.slug(store.device_kind()) / "window_scaling.json"
    results = store.Store(path, args.fresh)
    print(f"{store.device_kind()}, {len(chosen)} lengths and windows -> {path}")
    before = clock.clocks()
    results.content["peaks"] = implementations.peaks(small)
    left = scaling.measure(results, small, names, rounds, deadline, args.call_limit_s)
    results.content["clocks"] = [before, clock.clocks()]
    results.content["fits"] = scaling.fits(results.content)
    results.write()
    print(scaling.table(results.content))
    scaling.picture(results.content, path.with_suffix(".png"))
    return _end(results, path, [case.name for case in chosen], left)


def _end(results: store.Store, path: Path, order: list[str], left: int) -> int:
    """Says where the results are; exit code 1 if one of ours is wrong."""
    for state in filter(None, results.content["clocks"]):
        print(state)
    print(f"written to {path} and {path.with_suffix('.png')}; {left} rows are left for another run")
    shown = [row for row in results.rows.values() if row["case"] in order]
    # Peers may be as inexact as they like: what decides is ours.
    wrong = [row for row in shown if row.get("wrong") and row["implementation"] in (*implementations.OURS, "reference")]
    if wrong:
        print(f"error: {len(wrong)} results of ours are further from float32 than allowed", file=sys.stderr)
    return 1 if wrong else 0


def main(arguments: list[str] | None = None) -> int:
    """Parses flags and runs; returns the exit code."""
    began = time.monotonic()
    args = tyro.cli(Arguments, args=arguments, prog="experiments.kernels", description=__doc__)
    if args.mode == "tune":
        path = args.out or store.RESULTS / store.slug(store.device_kind()) / "tuning.json"
        return tune.run(path, began + args.budget_s, rounds=args.rounds, limit_s=args.call_limit_s, fresh=args.fresh)
    return show_scaling(args, began) if args.mode == "scaling" else measure(args, began)


if __name__ == "__main__":
    sys.exit(main())
