"""Is the PyTorch twin the same model, and which is faster here? ``python -m experiments.parity``.

First the differences by part, forward and gradient, in float64 and float32, of presets with new weights carried over to
the twin. Then examples/s of the training step and of inference: JAX, PyTorch eager and PyTorch compiled take turns in
one process on the same batch, so that a busy machine slows all of them alike. A turn is a few calls in a row, as in
a run, after one warm-up call that is recorded separately; the median over turns counts.
Histories are "jagged" as in KuaiRand, whose impressions are 7% of the longest on average with 18% of users having
none, or all "full". PyTorch pads to the longest history of the batch.

What the JSON file already has for the same settings is not run again (--fresh does). ``--presets kunlun/small --lengths
jagged --rounds 5`` takes 3 minutes on two idle cores, mostly for PyTorch to compile; both lengths with 9 rounds took 30
on cores half as fast. Preset base takes over 5 per setting.
Expected: float64 within 1e-10 forward and 1e-8 for gradients, else the exit code is 1. Writes
``experiments/results/cpu/parity.json`` and a picture beside it.
"""

import copy
import dataclasses
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import tyro
from flax import nnx
from matplotlib.figure import Figure

from experiments.configs import PRESETS
from experiments.random_batches import Lengths, random_batch
from kunlun_jax.batch import Batch
from kunlun_jax.data.schema import Schema
from kunlun_jax.data.sets.synthetic import SyntheticConfig, SyntheticSource
from kunlun_jax.nn.embedding import init_tables
from kunlun_jax.provenance import environment
from kunlun_jax.torch_reference import parity
from kunlun_jax.torch_reference.batch import from_packed
from kunlun_jax.torch_reference.optimizer import Trainer as TorchTrainer
from kunlun_jax.training.config import TrainConfig
from kunlun_jax.training.run_directory import write_atomic
from kunlun_jax.training.step import Trainer

LIMITS = (1e-10, 1e-8)
"""Largest relative differences in float64, of outputs and of gradients."""
CALLS = 3
"""Calls of a turn that count. One goes before them: a kernel may take back memory that a process leaves alone for some
seconds, and then the first call after the others' turns is not what a step of a run costs."""
STEPS = 1000
"""Of the run whose schedule the optimizers follow."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of the comparison."""

    presets: tuple[str, ...] = ("kunlun/small", "kunlun/base")
    """Presets to compare and to time."""
    lengths: tuple[Lengths, ...] = ("jagged", "full")
    """Lengths of histories to time."""
    batch: tuple[tuple[str, int], ...] = (("kunlun/small", 256), ("kunlun/base", 16))
    """Examples of a batch by preset, for the speed; base's own 1024 take minutes a step on a CPU."""
    rounds: int = 7
    """Turns of each; the median is reported."""
    threads: int = 2
    """Threads of PyTorch; JAX takes all cores."""
    fresh: bool = False
    """Whether to run again what the file has."""
    out: Path = Path("experiments/results/cpu/parity.json")
    """JSON file for the result; the picture goes beside it."""

    def __post_init__(self):
        lacking = sorted(set(self.presets) - set(PRESETS) | set(self.presets) - set(dict(self.batch)))
        if lacking:
            raise ValueError(f"presets names {lacking}; use those of {sorted(PRESETS)} that batch gives a size")
        if self.rounds < 5:
            raise ValueError(f"rounds is {self.rounds}; a median of fewer than 5 says little")


def make_pair(schema: Schema, config: TrainConfig, dtype: str) -> parity.Pair:
    """A preset with new weights, and its twin."""
    model_config = dataclasses.replace(config.model, dtype=dtype)
    model = model_config.build(schema, base_rate=(0.1,) * len(schema.tasks), rngs=nnx.Rngs(0))
    tables = init_tables(model.schema, model.embedding_dim, scale=model.embedding_scale, key=jax.random.key(0))
    return parity.Pair.of(model, tables, schema, model_config)


def differences(schema: Schema, config: TrainConfig, dtype: str) -> dict[str, Any]:
    """Kind of part -> relative differences of outputs and of gradients, None where there are none."""
    with parity.precision(dtype):
        batch = random_batch(schema, 8, config.loader.max_events, "jagged", seed=1)
        return dict(parity.compare(make_pair(schema, config, dtype), batch).by_kind())


def subjects(schema: Schema, config: TrainConfig, batch: Batch) -> dict[str, Callable[[], Any]]:
    """What is timed: "train/jax" -> a call that returns when its work is done."""
    pair = make_pair(schema, config, "float32")
    trainer = Trainer(pair.model(pair.params), config.optimizer, steps=STEPS, log_every=20, seed=0)
    state, on_device, padded = trainer.init(), jax.device_put(batch), from_packed(batch)
    kept = trainer.init()

    def jax_train() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(trainer.step(state, on_device))

    runs: dict[str, Callable[[], Any]] = {
        "train/jax": jax_train,
        "predict/jax": lambda: jax.block_until_ready(trainer.predict(kept, on_device)),
    }
    for name in ("eager", "compiled"):
        learner = TorchTrainer(copy.deepcopy(pair.twin), config.optimizer, steps=STEPS)
        fixed = copy.deepcopy(pair.twin).eval()
        forward: Callable = fixed
        if name == "compiled":
            learner.forward, forward = torch.compile(learner.model), torch.compile(fixed)
        runs[f"train/torch {name}"] = lambda learner=learner: learner.step(padded)
        runs[f"predict/torch {name}"] = lambda forward=forward: torch.no_grad()(forward)(padded)
    return runs


def speed(schema: Schema, config: TrainConfig, lengths: Lengths, size: int, rounds: int) -> dict[str, Any]:
    """Examples/s of each subject, the median over its turns."""
    batch = random_batch(schema, size, config.loader.max_events, lengths)
    load = os.getloadavg()
    runs = subjects(schema, config, batch)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    after_pause: dict[str, list[float]] = {name: [] for name in runs}
    first = {}
    for name, run in runs.items():
        began = time.perf_counter()
        run()
        first[name] = time.perf_counter() - began
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            resumed = time.perf_counter()
            for _ in range(CALLS):
                run()
            after_pause[name].append(resumed - began)
            seconds[name].append((time.perf_counter() - resumed) / CALLS)
    events = {name: np.asarray(packed.lengths) for name, packed in batch.events.items()}
    return {
        "batch": size,
        "mean_events": {name: float(n.mean()) for name, n in events.items()},
        "longest_events": {name: int(n.max()) for name, n in events.items()},
        "load_average_before_and_after": [load, os.getloadavg()],
        "seconds": seconds,
        "seconds_after_pause": after_pause,
        "first_call_seconds": first,
        "examples_per_second": {name: size / statistics.median(s) for name, s in seconds.items()},
    }


def ratio(cell: dict[str, Any], task: str) -> float:
    """Examples/s of JAX over those of the better PyTorch mode."""
    rates = {name.removeprefix(f"{task}/"): rate for name, rate in cell["examples_per_second"].items() if task in name}
    return rates.pop("jax") / max(rates.values())


def table(result: dict[str, Any]) -> str:
    """The numbers for a person."""
    lines = [f"{'preset, dtype, part':<36} {'output':>9} {'gradient':>9}"]
    for cell, kinds in result["differences"].items():
        for kind, row in kinds.items():
            lines.append(f"{cell + ' ' + kind:<36} " + " ".join(f"{'-' if x is None else f'{x:.1e}':>9}" for x in row))
    lines.append(f"\n{'examples/s':<24} {'jax':>9} {'eager':>9} {'compiled':>9}  jax / best of torch")
    for cell, numbers in result["speed"].items():
        for task in ("train", "predict"):
            rates = [numbers["examples_per_second"][f"{task}/{x}"] for x in ("jax", "torch eager", "torch compiled")]
            lines.append(
                f"{cell + ' ' + task:<24} " + " ".join(f"{x:9.1f}" for x in rates) + f"  {ratio(numbers, task):.2f}"
            )
    return "\n".join(lines)


def markdown(result: dict[str, Any]) -> str:
    """Examples/s by setting."""
    lines = ["| examples/s | JAX | eager | compiled | JAX / the better |", "|---|---|---|---|---|"]
    for cell, numbers in result["speed"].items():
        for task in ("train", "predict"):
            rates = [numbers["examples_per_second"][f"{task}/{x}"] for x in ("jax", "torch eager", "torch compiled")]
            cells = " | ".join(f"{x:,.0f}" if x >= 100 else f"{x:.1f}" for x in rates)
            lines.append(f"| {cell}, {task} | {cells} | {ratio(numbers, task):.2f} |")
    return "\n".join(lines)


def picture(result: dict[str, Any], path: Path) -> None:
    """Differences by part, and examples/s by setting."""
    figure = Figure(figsize=(11, 4.2), dpi=140, layout="constrained")
    left, right = figure.subplots(1, 2)
    met = {kind for parts in result["differences"].values() for kind in parts}
    order = [*parity.KINDS, *sorted(met - set(parity.KINDS))]
    for cell, kinds in result["differences"].items():
        for index, (marker, what) in enumerate((("o", "output"), ("x", "gradient"))):
            found = {kind: max(row[index], 1e-18) for kind, row in kinds.items() if row[index] is not None}
            color = "#2f6fb0" if "float64" in cell else "#c8553d"
            left.plot([order.index(k) for k in found], list(found.values()), marker, color=color, alpha=0.6)
            left.plot([], [], marker, color=color, label=f"{cell.split()[1]}, {what}") if "small" in cell else None
    left.set_yscale("log")
    left.set_xticks(range(len(order)), order, rotation=35, ha="right", fontsize=8)
    left.set_ylabel("largest relative difference")
    left.legend(frameon=False, fontsize=8)
    rows = [
        (f"{cell}\n{task}", numbers, task) for cell, numbers in result["speed"].items() for task in ("train", "predict")
    ]
    for shift, name, color in (
        (-0.27, "jax", "#2f6fb0"),
        (0, "torch eager", "#999999"),
        (0.27, "torch compiled", "#444444"),
    ):
        rates = [numbers["examples_per_second"][f"{task}/{name}"] for _, numbers, task in rows]
        right.bar([i + shift for i in range(len(rows))], rates, 0.26, color=color, label=name)
    right.set_yscale("log")
    right.set_ylim(bottom=1)
    right.set_xticks(range(len(rows)), [label for label, _, _ in rows], fontsize=7)
    right.set_ylabel("examples/s (median)")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> int:
    """Parses flags, compares, prints and writes; returns the exit code."""
    args = tyro.cli(Arguments, args=arguments, prog="experiments.parity", description=__doc__)
    torch.set_num_threads(args.threads)
    schema = SyntheticSource(SyntheticConfig()).schema
    result: dict[str, Any] = {"differences": {}, "speed": {}, "made_by": {}}
    if args.out.exists() and not args.fresh:
        result |= json.loads(args.out.read_text())
    part_settings = {name: made["settings"] for name, made in result["made_by"].items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)

    def cell(part: str, name: str, settings: dict[str, Any], run: Callable[[], dict[str, Any]]) -> None:
        if part_settings.get(f"{part} {name}") != settings:
            print(f"{part} of {name} ...", file=sys.stderr)
            result[part][name] = run()
            result["made_by"][f"{part} {name}"] = {"settings": settings, "environment": environment()}
            write_atomic(args.out, json.dumps(result, indent=2) + "\n")

    for preset in args.presets:
        config = PRESETS[preset][1]
        for dtype in ("float64", "float32"):
            run = functools.partial(differences, schema, config, dtype)
            cell("differences", f"{preset} {dtype}", {"torch": torch.__version__}, run)
    for preset in args.presets:
        config, size = PRESETS[preset][1], dict(args.batch)[preset]
        for lengths in args.lengths:
            settings = {"torch": torch.__version__, "batch": size, "rounds": args.rounds, "threads": args.threads}
            settings["calls"] = CALLS
            run = functools.partial(speed, schema, config, lengths, size, args.rounds)
            cell("speed", f"{preset} {lengths}", settings, run)
    print(table(result))
    picture(result, args.out.with_suffix(".png"))
    print(f"written to {args.out}")
    wrong = [
        f"{name}, {kind}: {row}"
        for name, kinds in result["differences"].items()
        if "float64" in name
        for kind, row in kinds.items()
        if any(x is not None and not x <= limit for x, limit in zip(row, LIMITS, strict=True))
    ]
    for line in wrong:
        print(f"error: differs by more than {LIMITS}: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
