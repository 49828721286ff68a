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
end; a second run measures what is missing, so --budget-s may cut a run anywhere. The device is opened by a process of
its own (`kernel_benchmark.worker`): what crashes it, or is not back within --call-limit-s, has a row that says so, and
a new one goes on with the rest. Without a GPU the shapes are toys and the times say nothing about the kernels (half a
minute). Exit code 1: a result is wrong. All of it takes about half an hour on one GPU by estimate, not yet measured.

``tune`` measures block sizes of the Mosaic kernels for each kind of shape, in turn with the best so far, and writes the
best to ``pallas_kernels/operators/<operator>/tuning/<device>.json``, which the kernels read from then on.

``scaling`` shows that window attention takes time in proportion to rows times window: (100, 100) over sequences of 512
to 32k rows, with the exponent of a fit; ``experiments/results/<device>/window_scaling.json`` and a picture. Without a
GPU the XLA program up to 8k, two heads of 32 (three minutes).
"""

import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

# For the workers, which open the device: the largest shapes need most of its memory, and libraries beside JAX some.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")

from experiments.kernel_benchmark import (
    cases,
    clock,
    implementations,
    report,
    run,
    scaling,
    store,
    torch_attention,
    tune,
)
from experiments.kernel_benchmark.cases import Case
from experiments.kernel_benchmark.store import Row, Store
from experiments.kernel_benchmark.worker import Lost, Worker

FILES = {"measure": "kernels", "tune": "tuning", "scaling": "window_scaling"}


@dataclasses.dataclass(frozen=True)
class Peers:
    """Kernels of others that are called from PyTorch, in a process of their own."""

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
    """Which to measure, of ours (mosaic, xla and what else an operator has; of a block mosaic-norms-apart), unfused,
    cudnn, tokamax, meta-triton, flex, sdpa, and reference (toy shapes alone); none for all."""
    where: Literal["everywhere", "inside", "outside"] = "everywhere"
    """Which of these by who calls them: inside of JAX, or outside of it from PyTorch (meta-triton, flex, sdpa)."""
    groups: tuple[str, ...] = ()
    """Groups of cases: "pffn 256", "self", "window", "seeds", "block", "narrow", "pffn 128"; none for all."""
    rounds: int = 5
    """Rounds in which the implementations take turns; the median is reported."""
    call_limit_s: float = 90.0
    """Seconds that one call may take with its compilation; after that it has hung, and its process is replaced."""
    retry: bool = False
    """Whether to try again what could not run; block sizes are not."""
    fresh: bool = False
    """Whether to forget the results there are."""
    out: Path | None = None
    """JSON file for the results; None is kernels.json, tuning.json or window_scaling.json in
    ``experiments/results/<device>``."""
    peers: Peers = dataclasses.field(default_factory=Peers)

    def __post_init__(self):
        if self.rounds < 5:
            raise ValueError(f"rounds is {self.rounds}; a median of fewer than 5 says little")
        known = {
            "implementations": {*implementations.NAMES, "reference"},
            "groups": {case.group for case in cases.CASES},
        }
        for field, names in known.items():
            unknown = set(getattr(self, field)) - names
            if unknown:
                raise ValueError(f"{field} names {sorted(unknown)}; see --help for the known ones")
        blocks = {case.group for case in cases.CASES if case.block}
        if set(self.implementations) == {implementations.APART} and self.groups and not blocks & set(self.groups):
            raise ValueError(
                f"implementations names {implementations.APART} alone, which only groups {sorted(blocks)} have; groups "
                f"names {sorted(self.groups)}"
            )


def measure(args: Arguments, path: Path, deadline: float, device: dict[str, Any], worker: Worker) -> int:
    """Measures what is missing, prints the table and draws the picture; returns the exit code, 1 if ours are wrong."""
    small = args.small if args.small is not None else device["platform"] != "gpu"
    library = args.peers.ads_kernel_library
    results = Store(path, device["kind"], args.fresh, {torch_attention.META: f"at {library.name}"} if library else {})
    if args.retry:
        results.content.pop("no_kernel_clock", None)
    if args.mode == "scaling":
        chosen = scaling.cases_for(small)
    else:
        chosen = tuple(x for x in (cases.TOYS if small else cases.CASES) if not args.groups or x.group in args.groups)
    print(f"{device['kind']}, {'toy' if small else 'published'} shapes, {len(chosen)} cases -> {path}")
    before = clock.clocks()
    (results.content["peaks"],) = worker.ask(implementations.peaks, small)
    if args.mode == "scaling":
        # A CPU that others use, too, needs more rounds until one of them is undisturbed.
        rounds = max(args.rounds, 15) if small else args.rounds
        groups = scaling.groups(results, small, args.implementations, args.retry)
        left = run.measure_groups(groups, results, worker, run.measure, (rounds, False), deadline, whole=True)
        results.content["fits"] = scaling.fits(results.content)
    else:
        names = args.implementations or (*implementations.NAMES, *(("reference",) if small else ()))
        inside, outside = missing(args, results, chosen, names)
        share = 0 if not outside else 1 if not inside else args.peers.share
        first = deadline - share * args.budget_s
        left = run.measure_groups(inside, results, worker, run.measure, (args.rounds, True), first, kernel_clock=True)
        worker.close()  # the device's memory is for the others
        with Worker(args.call_limit_s) as others:
            left += run.measure_groups(outside, results, others, torch_attention.measure, (library,), deadline)
    results.content["clocks"] = [before, clock.clocks()]
    results.write()
    order, image = [case.name for case in chosen], path.with_suffix(".png")
    if args.mode == "scaling":
        print(scaling.table(results.content))
        scaling.picture(results.content, image)
    else:
        print(report.table(results.content, order))
        report.picture(results.content, order, image)
    for state in filter(None, results.content["clocks"]):
        print(state)
    print(f"written to {path} and {image}; {left} rows are left for another run")
    # Peers may be as inexact as they like: what decides is ours.
    names = {*implementations.OURS, implementations.APART, "reference"}
    ours = [row for row in results.rows.values() if row["implementation"] in names]
    wrong = [row for row in ours if row["case"] in order and row.get("wrong")]
    if wrong:
        print(f"error: {len(wrong)} results of ours are further from float32 than allowed", file=sys.stderr)
    return 1 if wrong else 0


def missing(
    args: Arguments, results: Store, chosen: Iterable[Case], names: Iterable[str]
) -> tuple[list[list[Row]], ...]:
    """By case the rows to measure inside and outside of JAX; those that are refused at once are stored."""
    groups: tuple[list[list[Row]], ...] = ([], [])
    for case, where in itertools.product(chosen, ("inside", "outside")):
        rows = []
        for pass_, name in itertools.product(run.PASSES, names if args.where in ("everywhere", where) else ()):
            row = Row(case, pass_, name)
            if name == implementations.APART and not case.block:
                continue
            if (name in torch_attention.NAMES) == (where == "outside") and results.lacks(row, args.retry):
                why = torch_attention.refusal(row, args.peers.ads_kernel_library)
                if why is None:
                    rows.append(row)
                else:
                    results.put(row, {"cannot_run": why})
        groups[where == "outside"].extend([rows] if rows else [])
    return groups


def main(arguments: list[str] | None = None) -> int:
    """Parses flags and runs; returns the exit code."""
    began = time.monotonic()
    args = tyro.cli(Arguments, args=arguments, prog="experiments.kernels", description=__doc__)
    deadline = began + args.budget_s
    with Worker(args.call_limit_s) as worker:
        try:
            (device,) = worker.ask(implementations.device)
        except Lost as lost:
            print(f"error: the device could not be opened: {lost}", file=sys.stderr)
            return 1
        path = args.out or store.RESULTS / store.slug(device["kind"]) / f"{FILES[args.mode]}.json"
        if args.mode == "tune":
            return tune.run(device["kind"], worker, path, deadline, rounds=args.rounds, fresh=args.fresh)
        return measure(args, path, deadline, device, worker)


if __name__ == "__main__":
    sys.exit(main())
