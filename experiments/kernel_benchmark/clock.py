"""How calls are timed: in turn with each other, many in a row, and never two that are not finished.

A round lets every subject run a number of calls one after another and waits for the last; the time of a call is the
round's share, so what it costs to start a call hides in the one before, as in a training step. Calls shorter than
10 ms run 10 or more in a row and at least 20 ms; longer ones 2 in a row, as starting them costs less than a
thousandth; with 5 rounds no median rests on fewer than 10 calls. Subjects take turns in each round, so clocks and
temperature drift alike for all. Where NVIDIA's CUPTI answers, it is accompanied by the time of the kernels alone.
"""

import dataclasses
import functools
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax


@dataclasses.dataclass
class Times:
    """Seconds of a call by round, calls in a row of a round, and seconds of the first call with its compilation."""

    rounds: list[float]
    calls: int
    first: float

    @property
    def median(self) -> float:
        """Median over rounds."""
        return statistics.median(self.rounds)


def calls_in_a_row(seconds: float) -> int:
    """Calls of a round, by the time of one."""
    return 2 if seconds > 0.01 else min(200, max(10, math.ceil(0.02 / max(seconds, 1e-6))))


def first_call(call: Callable[[], Any]) -> tuple[Times, Any]:
    """Compiles and warms up a call; returns its times without a round yet, and its result."""
    began = time.perf_counter()
    result = jax.block_until_ready(call())
    first = time.perf_counter() - began
    began = time.perf_counter()
    result = jax.block_until_ready(call())
    return Times([], calls_in_a_row(time.perf_counter() - began), first), result


def turns[Name](subjects: Mapping[Name, Callable[[], Any]], times: Mapping[Name, Times], rounds: int) -> Iterator[Name]:
    """Adds rounds to the times of subjects that are warm, and yields whose turn is next."""
    for _ in range(rounds):
        for name, call in subjects.items():
            yield name
            times[name].rounds.append(_round(call, times[name].calls))


def take_turns[Name](subjects: Mapping[Name, Callable[[], Any]], rounds: int) -> dict[Name, Times]:
    """Times of each subject over `rounds` rounds; all are compiled and warmed up before."""
    times = {name: first_call(call)[0] for name, call in subjects.items()}
    for _ in turns(subjects, times, rounds):
        pass
    return times


def _round(call: Callable[[], Any], calls: int) -> float:
    result = None
    began = time.perf_counter()
    for _ in range(calls):
        del result  # its memory is free for the next call
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / calls


def kernel_seconds(call: functools.partial, iterations: int = 5) -> tuple[float | None, str]:
    """Median seconds that the kernels of a jitted call take, without the gaps between, by CUPTI; else None and why."""
    if jax.default_backend() != "gpu":
        return None, "no GPU"
    try:
        from jax.experimental.mosaic.gpu import profiler

        # One by one, since loops on the device need not launch the same kernels each time.
        readings = [profiler.measure(call.func)(*call.args)[1] for _ in range(iterations)]
        milliseconds = [reading for reading in readings if reading is not None]
        if len(milliseconds) < iterations:
            return None, "CUPTI saw no kernels"
        return statistics.median(milliseconds) / 1e3, ""
    except Exception as error:  # only a second opinion: the results say why it is missing
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def clocks() -> str | None:
    """What nvidia-smi says of the card's clocks and power now; None where there is none."""
    fields = "name,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{fields}: {done.stdout.strip().splitlines()[0]}" if done.stdout.strip() else None
