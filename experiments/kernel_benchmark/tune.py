"""Block sizes of the Mosaic kernels, measured on the device at hand.

Each kind of shape of an operator (`pallas_kernels.mosaic.tuning.Key`) has a list of candidates, the default first.
Kinds take turns, three candidates for the first four shapes and one for the others, so that a short budget gives every
kind something; a candidate is timed in turn with the best so far, so that drifting clocks favour neither, and one whose
result is wrong never wins. dq and dkv run in one backward pass, so each is varied with the other at its default. Every
measurement goes into ``tuning.json`` beside the results, which a second run continues from, and the best into the
tuning file of its operator, ``pallas_kernels/operators/<operator>/tuning/<device>.json``.
"""

import dataclasses
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from experiments.kernel_benchmark import cases, clock, store, subjects, unfused
from experiments.kernel_benchmark.cases import Case
from experiments.kernel_benchmark.run import AGAIN, ERROR_LIMIT, check_device
from kunlun_jax.training.run_directory import write_atomic
from pallas_kernels.jagged import aligned
from pallas_kernels.mosaic import tuning
from pallas_kernels.mosaic.config import CONFIGS, Config
from pallas_kernels.mosaic.tuning import Key
from pallas_kernels.operators.gdpa import mosaic as gdpa_mosaic
from pallas_kernels.operators.seed_attention import mosaic as seed_mosaic
from pallas_kernels.operators.window_attention import mosaic as window_mosaic


def _window(window: tuple[int, int], batch: int = 256, length: int = 1024, sparsity: float = 0.5, **fields) -> Case:
    return Case("tune", batch, length, sparsity, window=window, activation="softmax", **fields)


def _seeds(seeds: int, **fields) -> Case:
    return Case("tune", 512, 1000, 0.5, seeds=seeds, activation="softmax", **fields)


WHOLE = (10**9, 10**9)
"""A window as wide as any rows: full attention."""
SHAPES = (
    Case("tune", 512, 1024, 0.5, keys=256),
    Case("tune", 256, 1024, 0.5),
    _window((100, 100)),
    _seeds(64),
    Case("tune", 512, 1024, 0.5, keys=128),
    _window((50, 50)),
    _window((128, 128), 8, 4096, 1.0, heads=16),
    _window((1024, 0), 8, 4096, 1.0, heads=16),
    _window(WHOLE, 64, 1024),
    _seeds(32),
    _seeds(256),
    Case("tune", 512, 1024, 0.5, keys=256, dim=64),
    Case("tune", 512, 1024, 0.5, keys=256, dim=32),
    Case("tune", 512, 1024, 0.5, keys=256, activation="relu"),
    Case("tune", 512, 1024, 0.5, keys=256, dim=64, activation="relu"),
    Case("tune", 512, 1024, 0.5, keys=256, dim=32, activation="relu"),
    *(_window((100, 100), dim=dim) for dim in (64, 32)),
    *(_seeds(64, dim=dim) for dim in (64, 32)),
)
"""One for each kind, the most important first; large enough to fill a chip, small enough to make quickly."""
FIRST = 4
"""Of these, how many get three candidates for each one of the others."""
MOST = 24
"""Candidates of a kind."""

Build = Callable[[cases.Problem, dict[str, Config]], tuple[Callable[[], Any], Callable[[], Any]]]


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


def build_mosaic(problem: cases.Problem, configs: dict[str, Config]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Forward and backward of the Mosaic kernels of the problem's operator with the given block sizes."""
    case = problem.case

    def call(q, k, v, *offsets):
        if case.seeds is not None:
            return seed_mosaic.seed_attention(q, k, v, *offsets, scale=case.scale, configs=configs)
        if case.window is not None:
            window, scale = case.window, case.scale
            return window_mosaic.window_attention(q, k, v, *offsets, window=window, scale=scale, configs=configs)
        own = () if case.keys else offsets
        options = {"activation": case.activation, "pre_scale": case.scale, "post_scale": 1.0}
        return gdpa_mosaic.gdpa(q, k, v, *offsets, *own, configs=configs, **options)

    offsets = (problem.row_splits, problem.lengths)
    return subjects.compiled(call, problem.operands, offsets, problem.cotangent)


@dataclasses.dataclass
class Tuner:
    """What was measured, on disk after each candidate.

    Attributes:
      path: the file of all measurements.
      root: folder of the operators; their tuning files are in ``<operator>/tuning``.
      generation: "sm90" or "sm100".
      build: makes the calls of a problem for block sizes.
      shapes: what to tune.
      rounds: rounds of the clock.
      limit_s: seconds that a candidate may take.
    """

    path: Path
    root: Path
    generation: str
    build: Build = build_mosaic
    shapes: tuple[Case, ...] = SHAPES
    rounds: int = 5
    limit_s: float = 90.0

    def __post_init__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The device's own tuning files are no source here, but the kernels are: a changed kernel is tuned anew.
        self.state: dict[str, Any] = {"device": store.device_kind(), "sources": store.sources(), "measured": {}}
        if self.path.exists():
            old = json.loads(self.path.read_text())
            if {name: old.get(name) for name in ("device", "sources")} == {
                name: self.state[name] for name in ("device", "sources")
            }:
                self.state = old
        self._problems: dict[str, tuple[cases.Problem, Any]] = {}
        self._live: dict[str, Callable[[], Any]] = {}  # the best of each kind, compiled

    def plan(self) -> list[tuple[Case, Key, Config]]:
        """Candidates not yet measured, kinds taking turns."""
        queues: list[Iterator[tuple[Case, Key, Config]]] = []
        for case, pass_ in itertools.product(self.shapes, tuning.PASSES):
            key = key_of(case, pass_)
            done = [self.config(entry) for entry in self.measured(case.operator, key)]
            wanted = itertools.islice(tuning.candidates(key, self.generation, case.operator), MOST)
            queues.append(iter([(case, key, config) for config in wanted if config not in done]))
        weight = {case: 3 if case in self.shapes[:FIRST] else 1 for case in self.shapes}
        turns = [(turn / weight[item[0]], item) for queue in queues for turn, item in enumerate(queue)]
        return [item for _, item in sorted(turns, key=lambda turn: turn[0])]

    def config(self, entry: dict[str, Any]) -> Config:
        """The block sizes of an entry."""
        return CONFIGS[self.generation](**entry["config"])

    def measured(self, operator: str, key: Key) -> list[dict[str, Any]]:
        """What is known of a kind."""
        return self.state["measured"].setdefault(kind(operator, key), [])

    def best(self, operator: str, key: Key) -> dict[str, Any] | None:
        """The entry that won, None without any. Ratios to the default's time of the same turn are compared."""
        right = [entry for entry in self.measured(operator, key) if "relative" in entry]
        return min(right, key=lambda entry: entry["relative"], default=None)

    def kinds(self) -> Iterator[tuple[str, Key]]:
        """Operator and key of each kind."""
        for case, pass_ in itertools.product(self.shapes, tuning.PASSES):
            yield case.operator, key_of(case, pass_)

    def measure(self, case: Case, key: Key, config: Config) -> None:
        """Times a candidate in turn with the best so far, and writes what came out."""
        entry: dict[str, Any] = {"config": dataclasses.asdict(config)}
        timer = threading.Timer(self.limit_s, self._hung, (case.operator, key, entry))
        timer.daemon = True
        timer.start()
        try:
            entry |= self._times(case, key, config)
        except Exception as error:  # the reason of this candidate, and no reason to lose the others
            entry["cannot_run"] = subjects.reason(error)
            check_device(f"{kind(case.operator, key)}, {config}")
        finally:
            timer.cancel()
        self.measured(case.operator, key).append(entry)
        self.write()

    def _hung(self, operator: str, key: Key, entry: dict[str, Any]) -> None:
        entry["cannot_run"] = f"no result within {self.limit_s:g} s; the process was ended"
        self.measured(operator, key).append(entry)
        self.write()
        print(f"\n{kind(operator, key)}: {entry}", file=sys.stderr, flush=True)
        os._exit(AGAIN)

    def _times(self, case: Case, key: Key, config: Config) -> dict[str, Any]:
        problem, truth = self._problem(case)
        pass_ = "forward" if key.pass_ == "forward" else "backward"
        call = self._call(problem, key, config)
        first, _, result = clock.first_call(call)
        results = [result] if pass_ == "forward" else result
        packed = problem.packed[3:] if pass_ == "forward" else problem.packed[:3]
        if truth is None:
            return {"cannot_run": "the scores of a few examples do not fit in float32, so nothing tells a wrong result"}
        found = unfused.pick(problem, results, packed)
        del result, results
        ratios = unfused.error_ratios(found, truth["float32"][pass_], truth["bfloat16"][pass_])
        if not all(ratio <= ERROR_LIMIT[pass_] for ratio in ratios):
            return {"cannot_run": f"wrong: its errors are {ratios} times those of plain bf16"}
        name = kind(case.operator, key)
        calls, best = {"candidate": call}, self.best(case.operator, key)
        if best is not None:
            calls["best"] = self._live.get(name) or self._call(problem, key, self.config(best))
            self._live[name] = calls["best"]
        times = clock.take_turns(calls, self.rounds)
        seconds, relative = times["candidate"].median, 1.0
        if best is not None:
            relative = seconds / times["best"].median * best["relative"]
        if best is None or relative < best["relative"]:
            self._live[name] = call
        return {"seconds": seconds, "relative": relative, "error_ratios": ratios, "first_call_s": first}

    def _call(self, problem: cases.Problem, key: Key, config: Config) -> Callable[[], Any]:
        case = problem.case
        configs = {
            pass_: tuning.default(key_of(case, pass_), self.generation, case.operator) for pass_ in tuning.PASSES
        } | {key.pass_: config}
        forward, backward = self.build(problem, configs)
        return forward if key.pass_ == "forward" else backward

    def _problem(self, case: Case) -> tuple[cases.Problem, Any]:
        if case.name not in self._problems:
            problem = cases.problem(case)
            self._problems[case.name] = (problem, unfused.truth(problem))
        return self._problems[case.name]

    def write(self) -> None:
        """Writes the measurements, and the best of each kind where the kernels read them."""
        write_atomic(self.path, json.dumps(self.state, indent=1) + "\n")
        entries: dict[str, list[dict[str, Any]]] = {}
        for operator, key in self.kinds():
            best, known = self.best(operator, key), self.measured(operator, key)
            if best is None:
                continue
            entries.setdefault(operator, []).append(
                {
                    "pass": key.pass_,
                    "dim": key.dim,
                    "keys": key.keys,
                    "activation": key.activation,
                    "dtype": key.dtype,
                    "config": best["config"],
                    "seconds": best["seconds"],
                    "default_seconds": best["seconds"] / best["relative"],
                    "measured": len(known),
                }
            )
        for operator, own in entries.items():
            content = {
                "format": tuning.FORMAT,
                "device": store.device_kind(),
                "generation": self.generation,
                "made_by": store.environment(),
                "entries": own,
            }
            path = self.root / operator / "tuning" / f"{tuning.slug(store.device_kind())}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(content, indent=1) + "\n")
        if entries:
            tuning.read.cache_clear()

    def table(self) -> str:
        """The best of each kind for a person."""
        lines = [f"{'kind':<62} {'ms':>8} {'default':>8}  measured  best"]
        for operator, key in self.kinds():
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


def run(path: Path, deadline: float, *, rounds: int, limit_s: float, fresh: bool, root: Path = store.OPERATORS) -> int:
    """Tunes until the deadline; returns the exit code, 1 if nothing can be tuned here."""
    if jax.default_backend() != "gpu":
        print(f"cannot tune: Mosaic kernels need a GPU and this is {store.device_kind()!r}", file=sys.stderr)
        return 1
    try:
        generation = tuning.generation(store.device_kind())
        if fresh:
            path.unlink(missing_ok=True)
        tuner = Tuner(path, root, generation, rounds=rounds, limit_s=limit_s)
        todo = tuner.plan()
    except ValueError as error:
        print(f"cannot tune: {subjects.reason(error)}", file=sys.stderr)
        return 1
    with tqdm(total=len(todo), unit="config", file=sys.stderr, dynamic_ncols=True) as bar:
        for case, key, config in todo:
            if time.monotonic() > deadline:
                bar.set_description("out of time")
                break
            bar.set_description(kind(case.operator, key))
            tuner.measure(case, key, config)
            bar.update()
    print(tuner.table())
    print(f"measured: {path}; block sizes: {root}/<operator>/tuning")
    print(f"{len(tuner.plan())} candidates are left for another run")
    return 0 if any(tuner.best(operator, key) for operator, key in tuner.kinds()) else 1
