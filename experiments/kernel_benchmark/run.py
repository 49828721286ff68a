"""The run over cases: what is missing is measured, and each row is on disk before the next begins."""

import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from experiments.kernel_benchmark import cases, clock, implementations, store, unfused
from experiments.kernel_benchmark.cases import Case
from experiments.kernel_benchmark.store import Store, cannot_run, row_name
from experiments.kernel_benchmark.subjects import CannotRun, Subject, reason
from pallas_kernels import roofline
from pallas_kernels.chips import chip_of
from pallas_kernels.roofline import Pass

PASSES: tuple[Pass, ...] = ("forward", "backward")
ERROR_LIMIT = {"forward": 2, "backward": 5}
"""Times the error of plain bf16 that a kernel may be off."""
AGAIN = 75
"""Exit code: the device has to be opened anew, in a new process; what was measured is on disk."""


class OutOfTime(Exception):
    """The budget is spent."""


@dataclasses.dataclass
class Guard:
    """Watches that a call comes back, and remembers on disk which one runs, should it take the process with it.

    Attributes:
      store: the results.
      seconds: what a call, its compilation included, may take.
    """

    store: Store
    seconds: float

    def after_a_crash(self, by_name: dict[str, tuple[Case, str, str]]) -> None:
        """A call that twice did not survive gets a row that says so, and is not tried a third time."""
        running = self.store.content.pop("running", None)
        if running and running["attempts"] >= 2 and running["name"] in by_name:
            case, pass_, implementation = by_name[running["name"]]
            why = "the process ended twice while this ran (crashed, hung or killed)"
            self.store.put(running["name"], cannot_run(case, pass_, implementation, why))
        self.last = running

    @contextmanager
    def watch(self, case: Case, pass_: str, implementation: str) -> Iterator[None]:
        """Around a call that may hang or crash; `implementation` joins several by "+"."""
        name = row_name(case.name, pass_, implementation)
        last = getattr(self, "last", None)
        attempts = last["attempts"] + 1 if last and last["name"] == name else 1
        self.store.content["running"] = {"name": name, "attempts": attempts}
        self.store.write()

        def expired():
            why = f"no result within {self.seconds:g} s; the process was ended"
            self.store.content.pop("running", None)
            for each in implementation.split("+"):
                self.store.put(row_name(case.name, pass_, each), cannot_run(case, pass_, each, why))
            print(f"\n{name}: {why}", file=sys.stderr, flush=True)
            os._exit(AGAIN)

        timer = threading.Timer(self.seconds, expired)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self.store.content.pop("running", None)


def check_device(what: str) -> None:
    """Exits to be started again if the device answers nothing any more, as after an illegal access to memory."""
    try:
        jax.block_until_ready(jnp.ones(8) + 1)
    except Exception as error:  # the context is lost, whatever it says
        print(f"\nthe device is lost after {what}: {reason(error)}", file=sys.stderr, flush=True)
        sys.exit(AGAIN)


@dataclasses.dataclass
class Run:
    """One run over cases.

    Attributes:
      store: the results.
      cases: what to measure, most important first.
      names: implementations, without those of `processes`.
      rounds: rounds of the clock.
      deadline: when to stop, by `time.monotonic`.
      limit_s: what a call may take.
      retry: whether rows that could not run are tried again.
    """

    store: Store
    cases: tuple[Case, ...]
    names: tuple[str, ...]
    rounds: int
    deadline: float
    limit_s: float = 90.0
    retry: bool = False
    _asked: bool = False

    def missing(self, case: Case, pass_: str, implementation: str, extra: str = "") -> bool:
        """Whether this row is to be measured."""
        name = row_name(case.name, pass_, implementation)
        if not self.store.holds(name, implementation, case.operator, extra):
            return True
        return self.retry and "cannot_run" in self.store.rows[name]

    def plan(self, names: tuple[str, ...]) -> list[tuple[Case, str, str]]:
        """Rows to measure."""
        return [(c, p, n) for c in self.cases for p in PASSES for n in names if self.missing(c, p, n)]

    def __call__(self) -> int:
        """Measures; returns how many rows are left for another run."""
        guard = Guard(self.store, self.limit_s)
        everything = {row_name(c.name, p, n): (c, p, n) for c in self.cases for p in PASSES for n in self.names}
        guard.after_a_crash(everything)
        todo = self.plan(self.names)
        with tqdm(total=len(todo), unit="row", file=sys.stderr, dynamic_ncols=True) as bar:
            try:
                for case in dict.fromkeys(case for case, _, _ in todo):
                    bar.set_description(case.name)
                    rows = [(p, n) for c, p, n in todo if c == case]
                    self._case(case, rows, guard, bar)
            except OutOfTime:
                bar.set_description("out of time")
        return len(self.plan(self.names))

    def _in_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise OutOfTime

    def _case(self, case: Case, rows: list[tuple[str, str]], guard: Guard, bar: tqdm) -> None:
        self._in_time()
        problem = cases.problem(case)
        subjects: dict[str, Subject] = {}
        for name in dict.fromkeys(name for _, name in rows):
            try:
                subjects[name] = implementations.build(name, problem)
            except Exception as error:  # the reason of its rows, and no reason to lose those of others
                why = str(error) if isinstance(error, CannotRun) else reason(error)
                for pass_ in (p for p, n in rows if n == name):
                    self.store.put(row_name(case.name, pass_, name), cannot_run(case, pass_, name, why))
                    bar.update()
        if not subjects:
            return
        self._in_time()
        try:
            truth, no_truth = unfused.truth(problem), "the scores of a few examples do not fit in float32"
        except Exception as error:  # without a truth there still is a time
            truth, no_truth = None, reason(error)
            check_device(f"the truth of {case.name}")
        for pass_ in PASSES:
            calls: dict[str, Callable[[], Any]] = {}
            errors, first = {}, {}
            for name in [n for p, n in rows if p == pass_ and n in subjects]:
                self._in_time()
                call = getattr(subjects[name], pass_)
                try:
                    with guard.watch(case, pass_, name):
                        first[name], _, result = clock.first_call(call)
                    if truth is not None and subjects[name].same:
                        found = subjects[name].pick(pass_, result)
                        errors[name] = unfused.error_ratios(found, truth["float32"][pass_], truth["bfloat16"][pass_])
                    del result
                    calls[name] = call
                except Exception as error:  # the reason of this row
                    row = cannot_run(case, pass_, name, reason(error))
                    self.store.put(row_name(case.name, pass_, name), row)
                    bar.update()
                    check_device(row_name(case.name, pass_, name))
            if not calls:
                continue
            self._in_time()
            with guard.watch(case, pass_, "+".join(calls)):
                times = clock.take_turns(calls, self.rounds)
            for name, taken in times.items():
                row = self._row(case, pass_, name, subjects[name], taken.median, errors.get(name))
                row |= {"round_seconds": taken.rounds, "calls_in_a_row": taken.calls, "first_call_s": first[name]}
                if name not in errors and subjects[name].same:
                    row["no_error_ratio"] = no_truth
                # On disk before the second clock is asked, which is not ours.
                self.store.put(row_name(case.name, pass_, name), row)
                row["kernel_seconds"], why = self._kernel_seconds(calls[name])
                if why:
                    row["no_kernel_seconds"] = why
                self.store.put(row_name(case.name, pass_, name), row)
                bar.update()

    def _kernel_seconds(self, call: Callable[[], Any]) -> tuple[float | None, str]:
        """`clock.kernel_seconds`, but never again once CUPTI took a process with it."""
        if self.store.content.get("cupti") == "asked" and not self._asked:
            return None, "CUPTI ended the process in an earlier run"
        self._asked = True
        self.store.content["cupti"] = "asked"
        self.store.write()
        timer = threading.Timer(self.limit_s, os._exit, (AGAIN,))
        timer.daemon = True
        timer.start()
        try:
            return clock.kernel_seconds(call)
        finally:
            timer.cancel()
            self.store.content.pop("cupti")

    def _row(
        self, case: Case, pass_: Pass, name: str, subject: Subject, seconds: float, errors: list[float] | None
    ) -> dict[str, Any]:
        row = measured_row(self.store, case, pass_, name, seconds, errors, subject.cost)
        return row | {"examples": subject.examples, "note": subject.note, "same_function": subject.same}


def measured_row(store_: Store, case: Case, pass_: Pass, name: str, seconds: float, errors, cost) -> dict[str, Any]:
    """The row of a time: rates, and shares of what the chip can do."""
    flops = cost.forward_flops if pass_ == "forward" else cost.backward_flops
    row = {
        "case": case.name,
        "operator": case.operator,
        "group": case.group,
        "max_length": case.max_length,
        "sparsity": case.sparsity,
        "pass": pass_,
        "implementation": name,
        "seconds": seconds,
        "flops": flops,
        "flops_per_second": flops / seconds,
        "share_of_matmul": flops / seconds / store_.content["peaks"]["matmul_flops_per_second"],
        "error_ratios": errors,
        "error_limit": ERROR_LIMIT[pass_],
        # Written so that NaN is wrong.
        "wrong": bool(errors) and not all(ratio <= ERROR_LIMIT[pass_] for ratio in errors),
        "note": "",
        "same_function": True,
    }
    chip = chip_of(store.device_kind())
    if chip is not None:
        limit = roofline.limit(cost, pass_, chip, heads=case.heads, activation=case.activation)
        row |= {
            "share_of_datasheet": flops / seconds / chip.flops,
            "share_of_roofline": limit.seconds / seconds,
            "roofline_seconds": limit.seconds,
            "bound": limit.bound,
        }
    return row
