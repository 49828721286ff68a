"""Kernels of PyTorch and of Meta, each library in a process of its own that writes a JSON line for each result."""

import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.kernel_benchmark.cases import Case
from experiments.kernel_benchmark.store import cannot_run, row_name

if TYPE_CHECKING:
    from experiments.kernel_benchmark.run import Run

META = "meta-triton"
NAMES = (META, "flex", "sdpa")


@dataclasses.dataclass(frozen=True)
class Process:
    """A module that is run as a process of its own.

    Attributes:
      names: implementations that it measures; lines that name none are of the first.
      module: in this package.
      arguments: of its command line.
      operators: that it has kernels for.
      compared: examples whose results it compares with float32, the longest among them.
      fields: of a case that it wants beside name, lengths and subset.
      grace_s: seconds that it may take beyond its budget, for what it compiles when that is spent.
      extra: what its rows hold for beside sources and versions.
    """

    names: tuple[str, ...]
    module: str
    arguments: tuple[str, ...]
    operators: tuple[str, ...]
    compared: int
    fields: tuple[str, ...]
    grace_s: float
    extra: str = ""


def meta(path: Path) -> Process:
    """Meta's Triton GDPA from a checkout of facebookresearch/ads_model_kernel_library."""
    fields = ("max_length", "keys", "heads", "dim", "activation", "scale")
    return Process((META,), "meta_triton", (str(path),), ("gdpa",), 4, fields, 20, f"at {path.name}")


def torch(names: tuple[str, ...]) -> Process:
    """PyTorch's attention, of "flex" and "sdpa"."""
    fields = ("window", "seeds", "heads", "dim", "scale")
    return Process(names, "torch_attention", names, ("window_attention", "seed_attention"), 3, fields, 40)


def run(todo: "Run", names: tuple[str, ...], library: Path | None, budget_s: float) -> int:
    """Rows of the kernels in `names` that are missing; returns how many are left for another run.

    Args:
      todo: cases, results and what to do with rows that could not run.
      names: some of `NAMES`; others are passed over.
      library: Meta's checkout, or None if there is none.
      budget_s: seconds for all of them, the half for Meta's if both are asked.
    """
    left, pytorch = 0, tuple(name for name in ("flex", "sdpa") if name in names)
    if META in names and library is None:
        why = "not asked for: give --peers.ads-kernel-library PATH"
        _refuse(todo, [(case, META) for case in todo.cases], lambda _: why, "")
    elif META in names and library is not None:
        left += measure(todo, meta(library), budget_s / 2 if pytorch else budget_s)
    if pytorch:
        left += measure(todo, torch(pytorch), budget_s / 2 if META in names and library else budget_s)
    return left


def _refuse(todo: "Run", which: list[tuple[Case, str]], why: Callable[[Case], str], extra: str) -> None:
    for case, name in which:
        for pass_ in ("forward", "backward"):
            if todo.missing(case, pass_, name, extra):
                row = cannot_run(case, pass_, name, why(case))
                todo.store.put(row_name(case.name, pass_, name), row, extra)


def measure(todo: "Run", process: Process, budget_s: float) -> int:
    """Runs a process over the cases that miss a row, and stores its lines; returns how many rows are left."""
    from experiments.kernel_benchmark.run import PASSES, measured_row

    def missing() -> list[tuple[Case, str, str]]:
        return [
            (case, pass_, name)
            for case in todo.cases
            for pass_ in PASSES
            for name in process.names
            if todo.missing(case, pass_, name, process.extra)
        ]

    others = [(case, name) for case in todo.cases if case.operator not in process.operators for name in process.names]
    _refuse(todo, others, lambda case: f"it is not measured for {case.operator}", process.extra)
    by_name = {case.name: case for case, _, _ in missing()}
    if not by_name:
        return 0
    asked = []
    for case in by_name.values():
        lengths = case.lengths()
        subset = sorted({int(lengths.argmax()), *range(min(process.compared - 1, case.batch))})
        fields = {field: getattr(case, field) for field in process.fields}
        asked.append({"name": case.name, "lengths": lengths.tolist(), "subset": subset} | fields)
    command = [sys.executable, "-m", f"{__package__}.{process.module}", *process.arguments, "--budget-s", str(budget_s)]
    title = " and ".join(process.names)
    print(f"{title}: {len(asked)} cases in a process of its own, {budget_s:.0f} s ...", file=sys.stderr)
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None and child.stdout is not None
    timer = threading.Timer(budget_s + process.grace_s, child.kill)
    timer.daemon = True
    timer.start()
    try:
        child.stdin.write(json.dumps(asked))
        child.stdin.close()
        for line in child.stdout:
            if not line.startswith('{"name"'):
                continue  # the library may print, too
            found: dict[str, Any] = json.loads(line)
            case, pass_, name = by_name[found["name"]], found["pass"], found.get("implementation", process.names[0])
            if "cannot_run" in found:
                row = cannot_run(case, pass_, name, found["cannot_run"])
            else:
                cost = case.cost(case.lengths())
                row = measured_row(todo.store, case, pass_, name, found["seconds"], found["error_ratios"], cost)
                row |= {"examples": case.batch, "note": found["note"]}
                if found["error_ratios"] is None:
                    row["no_error_ratio"] = "the scores of an example do not fit in float32"
            todo.store.put(row_name(case.name, pass_, name), row, process.extra)
        child.wait()
    finally:
        timer.cancel()
        child.stdout.close()
    # One that crashed or hung leaves a row that says so, or the next run would do so at the same place.
    if child.returncode and missing():
        case, pass_, name = missing()[0]
        row = cannot_run(case, pass_, name, f"its process ended with {child.returncode}; --retry tries again")
        todo.store.put(row_name(case.name, pass_, name), row, process.extra)
    return len(missing())
