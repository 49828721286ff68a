"""Block sizes of the Mosaic kernels, measured on the device at hand.

Each kind of shape of an operator (`pallas_kernels.mosaic.tuning.Key`) has a list of candidates, the default first.
Kinds take turns, three candidates for the first four shapes and one for the others, so that a short budget gives every
kind something; a candidate is timed in turn with the best so far, so that drifting clocks favour neither, and one whose
result is wrong never wins. dq and dkv run in one backward pass, so each is varied with the other at its default. Every
measurement goes into ``tuning.json`` next to the results, from which a second run continues, and the best into the
tuning file of its operator, ``pallas_kernels/operators/<operator>/tuning/<device>.json``.
"""

import dataclasses
import functools
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.kernel_benchmark import cases, clock, store, unfused
from experiments.kernel_benchmark.cases import Case
from experiments.kernel_benchmark.implementations import APIS, options
from experiments.kernel_benchmark.run import ERROR_LIMIT, check_device
from experiments.kernel_benchmark.subjects import Subject, on_packed
from experiments.kernel_benchmark.worker import CannotRun, Message, Worker, collect, reason
from kunlun_jax.progress import ProgressBar
from kunlun_jax.training.run_directory import write_atomic
from pallas_kernels.jagged import aligned
from pallas_kernels.mosaic import tuning
from pallas_kernels.mosaic.config import CONFIGS, Config
from pallas_kernels.mosaic.tuning import Key

WHOLE = (10**9, 10**9)
"""A window as wide as any rows: full attention."""
SHAPES = (
    Case("tune", 512, 1024, 0.5, keys=256),
    Case("tune", 256, 1024, 0.5),
    Case("tune", 256, 1024, 0.5, window=(100, 100)),
    Case("tune", 512, 1000, 0.5, seeds=64),
    Case("tune", 512, 1024, 0.5, keys=128),
    Case("tune", 256, 1024, 0.5, window=(50, 50)),
    *(Case("tune", 8, 4096, 1.0, window=window, heads=16) for window in ((128, 128), (1024, 0))),
    Case("tune", 64, 1024, 0.5, window=WHOLE),
    *(Case("tune", 512, 1000, 0.5, seeds=seeds) for seeds in (32, 256)),
    *(Case("tune", 512, 1024, 0.5, keys=256, dim=dim) for dim in (64, 32)),
    *(Case("tune", 512, 1024, 0.5, keys=256, dim=dim, activation="relu") for dim in (128, 64, 32)),
    *(Case("tune", 256, 1024, 0.5, window=(100, 100), dim=dim) for dim in (64, 32)),
    *(Case("tune", 512, 1000, 0.5, seeds=64, dim=dim) for dim in (64, 32)),
)
"""One for each kind, the most important first; large enough to fill a chip, small enough to make quickly."""
FIRST = 4
"""Of these, how many get three candidates for each one of the others."""
MOST = 24
"""Candidates of a kind."""

Build = Callable[[cases.Problem, dict[str, Config]], Subject]


def key_of(case: Case, pass_: str) -> Key:
    """The kind of a case and pass, as the operator looks it up."""
    keys: int | str = tuning.JAGGED if case.keys is None else case.keys
    if case.seeds is not None:
        keys = case.seeds
    elif case.window is not None and max(case.window) < int(aligned(case.lengths()).sum()):
        keys = sum(case.window) + 1
    return Key(pass_, case.dim, keys, tuning.activation_class(case.activation))


def kind(operator: str, key: Key) -> str:
    """The name of a kind; two operators may have equal keys."""
    return f"{operator} {key}"


def build_mosaic(problem: cases.Problem, configs: dict[str, Config]) -> Subject:
    """The Mosaic kernels of the problem's operator with the given block sizes."""
    case = problem.case
    mosaic = next(one.function for one in APIS[case.operator].IMPLEMENTATIONS if one.name == "mosaic")
    function = functools.partial(mosaic, **options(case), configs=configs)
    own_keys = case.operator == "gdpa" and case.keys is None
    return on_packed(problem, lambda q, k, v, *rows: function(q, k, v, *rows, *(rows if own_keys else ())))


@functools.cache
def _problem(case: Case) -> tuple[cases.Problem, Any]:
    problem = cases.problem(case)
    return problem, unfused.truth(problem)


_best_calls: dict[str, dict[Config, functools.partial]] = {}
"""Of this process: the best of each kind that it knows, compiled."""


def time_candidate(
    candidate: tuple[Case, Key, Config], best: dict[str, Any] | None, generation: str, rounds: int, build: Build
) -> Iterator[Message]:
    """Job: times a candidate in turn with the best so far.

    Args:
      candidate: a shape, which of its kernels, and block sizes.
      best: the entry of the best so far, None without any.
      generation: "sm90" or "sm100".
      rounds: rounds of the clock.
      build: makes the calls of a problem for block sizes.
    """
    case, key, config = candidate
    name, pass_ = kind(case.operator, key), "forward" if key.pass_ == "forward" else "backward"
    defaults = {each: tuning.default(key_of(case, each), generation, case.operator) for each in tuning.PASSES}
    try:
        problem, truth = _problem(case)
        if truth is None:
            raise CannotRun("the scores of a few examples do not fit in float32, so nothing tells a wrong result")
        subject = build(problem, defaults | {key.pass_: config})
        calls = {config: subject.call(pass_)}
        first, result = clock.first_call(calls[config])
        ratios = subject.error_ratios(pass_, result, truth)
        del result
        if not all(ratio <= ERROR_LIMIT[pass_] for ratio in ratios):
            raise CannotRun(f"wrong: its errors are {ratios} times those of plain bf16")
        winner, relative = config, 1.0
        if best is not None:
            winner = CONFIGS[generation](**best["config"])
            known = _best_calls.get(name, {}).get(winner)
            calls[winner] = known or build(problem, defaults | {key.pass_: winner}).call(pass_)
        times = clock.take_turns(calls, rounds)
        if best is not None:
            relative = times[config].median / times[winner].median * best["relative"]
            winner = config if relative < best["relative"] else winner
        _best_calls[name] = {winner: calls[winner]}
        found = {"seconds": times[config].median, "relative": relative, "error_ratios": ratios}
        yield Message((candidate,), found | {"first_call_s": first.first})
    except Exception as error:  # the reason of this candidate, and no reason to lose the others
        yield Message((candidate,), {"cannot_run": reason(error)})
        check_device()


@dataclasses.dataclass
class Tuner:
    """What was measured, on disk after each candidate.

    Attributes:
      path: the file of all measurements.
      root: folder of the operators; their tuning files are in ``<operator>/tuning``.
      device: the name that JAX gives it.
      generation: "sm90" or "sm100".
      build: a function of a module that makes the calls of a problem for block sizes.
      shapes: what to tune.
      rounds: rounds of the clock.
      kinds: operator and key of each kind of the shapes.
    """

    path: Path
    root: Path
    device: str
    generation: str
    build: Build = build_mosaic
    shapes: tuple[Case, ...] = SHAPES
    rounds: int = 5

    def __post_init__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.kinds = [(x.operator, key_of(x, pass_)) for x, pass_ in itertools.product(self.shapes, tuning.PASSES)]
        # The device's own tuning files are no source here, but the kernels are: a changed kernel is tuned again.
        self.state: dict[str, Any] = {"device": self.device, "sources": store.sources(), "measured": {}}
        if self.path.exists():
            old = json.loads(self.path.read_text())
            if all(old.get(name) == self.state[name] for name in ("device", "sources")):
                self.state = old

    def plan(self) -> list[tuple[Case, Key, Config]]:
        """Candidates not yet measured, kinds taking turns."""
        turns: list[tuple[float, tuple[Case, Key, Config]]] = []
        for case, pass_ in itertools.product(self.shapes, tuning.PASSES):
            key, weight = key_of(case, pass_), 3 if case in self.shapes[:FIRST] else 1
            done = [CONFIGS[self.generation](**entry["config"]) for entry in self.measured(case.operator, key)]
            wanted = itertools.islice(tuning.candidates(key, self.generation, case.operator), MOST)
            left = [config for config in wanted if config not in done]
            turns += [(turn / weight, (case, key, config)) for turn, config in enumerate(left)]
        return [item for _, item in sorted(turns, key=lambda turn: turn[0])]

    def measured(self, operator: str, key: Key) -> list[dict[str, Any]]:
        """What is known of a kind."""
        return self.state["measured"].setdefault(kind(operator, key), [])

    def best(self, operator: str, key: Key) -> dict[str, Any] | None:
        """The entry that won, None without any. Ratios to the default's time of the same turn are compared."""
        right = [entry for entry in self.measured(operator, key) if "relative" in entry]
        return min(right, key=lambda entry: entry["relative"], default=None)

    def measure(self, case: Case, key: Key, config: Config, worker: Worker) -> None:
        """Times a candidate in turn with the best so far, and writes what came out."""
        entry, best = {"config": dataclasses.asdict(config)}, self.best(case.operator, key)

        def put(_, found):
            self.measured(case.operator, key).append(entry | found)
            self.write()

        options = (best, self.generation, self.rounds, self.build)
        collect([(case, key, config)], lambda left: worker.ask(time_candidate, *left, *options), put)

    def write(self) -> None:
        """Writes the measurements, and the best of each kind where the kernels read them."""
        write_atomic(self.path, json.dumps(self.state, indent=1) + "\n")
        entries: dict[str, list[dict[str, Any]]] = {}
        for operator, key in self.kinds:
            best = self.best(operator, key)
            if best is not None:
                entry = dict(zip(("pass", "dim", "keys", "activation", "dtype"), dataclasses.astuple(key), strict=True))
                entry |= {"config": best["config"], "seconds": best["seconds"]}
                entry |= {"default_seconds": best["seconds"] / best["relative"]}
                entries.setdefault(operator, []).append(entry | {"measured": len(self.measured(operator, key))})
        for operator, own in entries.items():
            content = {"format": tuning.FORMAT, "device": self.device, "generation": self.generation}
            content |= {"made_by": store.environment(self.device), "entries": own}
            path = self.root / operator / "tuning" / f"{tuning.slug(self.device)}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(content, indent=1) + "\n")
        tuning.read.cache_clear()

    def table(self) -> str:
        """The best of each kind for a person."""
        lines = [f"{'kind':<62} {'ms':>8} {'default':>8}  measured  best"]
        for operator, key in self.kinds:
            name, best, known = kind(operator, key), self.best(operator, key), self.measured(operator, key)
            failed = sum("cannot_run" in entry for entry in known)
            counted = f"{len(known):>3}" + (f", {failed} of them cannot run" if failed else "")
            if best is None:
                lines.append(f"{name:<62} {'-':>8} {'-':>8}  {counted}")
                continue
            first = dataclasses.asdict(CONFIGS[self.generation]())
            changed = {field: value for field, value in best["config"].items() if first[field] != value}
            default = best["seconds"] / best["relative"]
            lines.append(f"{name:<62} {best['seconds'] * 1e3:8.3f} {default * 1e3:8.3f}  {counted}  {changed}")
        failures = [(name, e) for name, known in self.state["measured"].items() for e in known if "cannot_run" in e]
        lines += [f"  cannot run: {name}: {entry['cannot_run'][:160]}" for name, entry in failures[:5]]
        return "\n".join(lines)


def run(device: str, worker: Worker, path: Path, deadline: float, *, rounds: int, fresh: bool) -> int:
    """Tunes until the deadline; returns the exit code, 1 if nothing can be tuned here.

    Args:
      device: the name that JAX gives it.
      worker: the process that measures.
      path: the file of all measurements.
      deadline: when nothing new is begun, by `time.monotonic`.
      rounds: rounds of the clock.
      fresh: whether to forget what was measured.
    """
    try:
        generation = tuning.generation(device)
    except ValueError as error:
        print(f"cannot tune: {error}", file=sys.stderr)
        return 1
    if fresh:
        path.unlink(missing_ok=True)
    tuner = Tuner(path, store.OPERATORS, device, generation, rounds=rounds)
    todo = tuner.plan()
    with ProgressBar(todo, unit="config", dynamic_ncols=True) as bar:
        for case, key, config in bar:
            if time.monotonic() > deadline:
                bar.set_description("out of time")
                break
            bar.set_description(kind(case.operator, key))
            tuner.measure(case, key, config, worker)
    print(tuner.table())
    print(f"measured: {path}; block sizes: pallas_kernels/operators/<operator>/tuning")
    print(f"{len(tuner.plan())} candidates are left for another run")
    return 0 if any(tuner.best(operator, key) for operator, key in tuner.kinds) else 1
