"""The run over rows: what is missing is measured in a worker, and each row is on disk before the next begins."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from experiments.kernel_benchmark import cases, clock, implementations, unfused
from experiments.kernel_benchmark.cases import Case
from experiments.kernel_benchmark.store import Row, Store
from experiments.kernel_benchmark.subjects import Subject
from experiments.kernel_benchmark.worker import Message, OutOfTime, Worker, collect, reason
from kunlun_jax.progress import ProgressBar
from pallas_kernels import roofline
from pallas_kernels.chips import chip_of
from pallas_kernels.roofline import Pass

PASSES: tuple[Pass, ...] = ("forward", "backward")
ERROR_LIMIT = {"forward": 2, "backward": 5}
"""Times the error of plain bf16 that a kernel may be off."""
KERNEL_CLOCK = "kernel clock"
"""Stands for CUPTI among the rows of a job, as what a worker may be lost to."""


def check_device() -> None:
    """Raises if the device answers nothing any more, as after an illegal access to memory: the process must end."""
    jax.block_until_ready(jnp.ones(8) + 1)


def measure(rows: list[Row | str], rounds: int, compare: bool) -> Iterator[Message]:
    """Job: times rows that take turns, one pass after the other, and compares their results with float32.

    Args:
      rows: what to measure; with `KERNEL_CLOCK` among them, CUPTI is asked, too.
      rounds: rounds of the clock.
      compare: whether to compare.
    """
    wanted = [row for row in rows if isinstance(row, Row)]
    problems = {case: cases.problem(case) for case in dict.fromkeys(row.case for row in wanted)}
    subjects: dict[Row, Subject] = {}
    for case, name in dict.fromkeys((row.case, row.implementation) for row in wanted):
        same = tuple(row for row in wanted if (row.case, row.implementation) == (case, name))
        yield Message(same)
        try:
            subjects |= dict.fromkeys(same, implementations.build(name, problems[case]))
        except Exception as error:  # the reason of its rows, and no reason to lose those of others
            yield Message(same, {"cannot_run": reason(error)})
            check_device()
    truths: dict[Case, tuple[Any, str]] = {}
    for case in dict.fromkeys(row.case for row in subjects) if compare else ():
        yield Message(tuple(row for row in subjects if row.case == case))
        try:
            truths[case] = unfused.truth(problems[case]), "the scores of a few examples do not fit in float32"
        except Exception as error:  # without a truth there still is a time
            truths[case] = None, reason(error)
            check_device()
    for pass_ in PASSES:
        calls: dict[Row, functools.partial] = {}
        times, errors = {}, {}
        for row in [row for row in subjects if row.pass_ == pass_]:
            subject, (truth, _) = subjects[row], truths.get(row.case, (None, ""))
            yield Message((row,))
            try:
                call = subject.call(pass_)
                times[row], result = clock.first_call(call)
                if truth is not None and subject.same:
                    errors[row] = subject.error_ratios(pass_, result, truth)
                del result
                calls[row] = call
            except Exception as error:  # the reason of this row
                yield Message((row,), {"cannot_run": reason(error)})
                check_device()
        for row in clock.turns(calls, times, rounds):
            yield Message((row,), begins=False)
        for row, call in calls.items():
            subject, taken = subjects[row], times[row]
            fields = {"seconds": taken.median, "fastest_seconds": min(taken.rounds), "round_seconds": taken.rounds}
            fields |= {"calls_in_a_row": taken.calls, "first_call_s": taken.first, "error_ratios": errors.get(row)}
            fields |= {"cost": row.case.cost(subject.lengths), "examples": len(subject.lengths)}
            fields |= {"note": subject.note, "same_function": subject.same}
            if row not in errors and subject.same and compare:
                fields["no_error_ratio"] = truths[row.case][1]
            yield Message((row,), fields)
            if KERNEL_CLOCK in rows:  # a second clock that is not ours: the row is on disk before it is asked
                yield Message((KERNEL_CLOCK,), begins=False)
                seconds, why = clock.kernel_seconds(call)
                yield Message(
                    (row,), fields | {"kernel_seconds": seconds} | ({"no_kernel_seconds": why} if why else {})
                )


def measure_groups(
    groups: list[list[Row]],
    store: Store,
    worker: Worker,
    job: Callable[..., Iterator[Message]],
    options: tuple[Any, ...],
    deadline: float,
    *,
    whole: bool = False,
    kernel_clock: bool = False,
) -> int:
    """Measures groups of rows, a job for each; returns how many rows are left for another run.

    Args:
      groups: rows by what takes turns.
      store: the results; its peaks are known.
      worker: the process that measures; others follow it if it ends.
      job: takes the rows of a group that are left and `options`, and says what came of them.
      options: its other arguments.
      deadline: when nothing new is begun, by `time.monotonic`.
      whole: whether a group that is begun is finished, whatever the time.
      kernel_clock: whether CUPTI is asked for the time of the kernels alone. Once a worker was lost to it, never again
        into this file.
    """

    def ask(left):
        return worker.ask(job, left, *options)

    def put(row, fields):
        if row == KERNEL_CLOCK:
            store.content["no_kernel_clock"] = f"CUPTI was asked, and {fields['cannot_run']}"
            return store.write()
        bar.update("kernel_seconds" not in fields)
        if "seconds" in fields:
            if kernel_clock and "kernel_seconds" not in fields:
                why = store.content.get("no_kernel_clock", "CUPTI did not come back")
                fields |= {"kernel_seconds": None, "no_kernel_seconds": why}
            fields = rated(store, row, fields)
        return store.put(row, fields)

    with ProgressBar(total=sum(map(len, groups)), unit="row", dynamic_ncols=True, disable=not groups) as bar:
        try:
            for rows in groups:
                if time.monotonic() > deadline:
                    raise OutOfTime
                bar.set_description(f"{rows[0].case.name}, {rows[0].implementation} ...")
                asks_clock = kernel_clock and "no_kernel_clock" not in store.content
                collect([*rows, *[KERNEL_CLOCK] * asks_clock], ask, put, float("inf") if whole else deadline)
        except OutOfTime:
            bar.set_description("out of time")
    return sum(not store.holds(row) for rows in groups for row in rows)


def rated(store: Store, row: Row, fields: dict[str, Any]) -> dict[str, Any]:
    """What was measured of a row, with rates, and shares of what the chip can do.

    Args:
      store: has the device and its peaks.
      row: what was measured.
      fields: "seconds" and "error_ratios" at least; "cost" where it is not that of the whole case.
    """
    case = row.case
    seconds, errors, limit = fields["seconds"], fields["error_ratios"], ERROR_LIMIT[row.pass_]
    cost = fields.get("cost") or case.cost(case.lengths())
    flops = cost.forward_flops if row.pass_ == "forward" else cost.backward_flops
    found = {"max_length": case.max_length, "sparsity": case.sparsity, "examples": case.batch, "same_function": True}
    found |= {name: value for name, value in fields.items() if name != "cost"}
    found |= {
        "flops": flops,
        "flops_per_second": flops / seconds,
        "share_of_matmul": flops / seconds / store.content["peaks"]["matmul_flops_per_second"],
        "error_limit": limit,
        # Written so that NaN is wrong.
        "wrong": bool(errors) and not all(ratio <= limit for ratio in errors),
    }
    chip = chip_of(store.device)
    if chip is not None:
        bound = roofline.limit(cost, row.pass_, chip, heads=case.heads, activation=case.activation)
        found |= {
            "share_of_datasheet": flops / seconds / chip.flops,
            "share_of_roofline": bound.seconds / seconds,
            "roofline_seconds": bound.seconds,
            "bound": bound.bound,
        }
    return found
