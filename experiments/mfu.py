"""What each of Kunlun's optimizations gives of the machine's FLOPs: the MFU ladder, ``python -m experiments.mfu``.

From an InterFormer that pads to the whole of Kunlun, one change a row, each with all before it:

    interformer     InterFormer of the same width, depth and heads; every history in a rectangle of the batch's longest,
                    maps of events on all of it, scores of all pairs through memory (`experiments.padded`)
    blocks          Kunlun's blocks in its place, padded likewise: PersonalizedFFN, PMA and full attention in every
                    layer, one size for all event types
    packed          histories packed, attention and pooling by the jagged operators; GDPA still pads
    gdpa            GDPA by the jagged operator, too: "xla" on a CPU, which works in tiles, "mosaic" on a GPU, fused
    hsp             HSP for PMA
    window          attention inside the preset's window
    compskip        pooling and attention in every other layer each
    personalized    impressions with half of every size and two layers: event-level personalization

The paper has 17% for the whole before and 37% after, on B200 (P); single rows by readers (R, r) gain or lose: GDPA +3
points, HSP for PMA -7, window -4, CompSkip -2.5, the last two while examples/s rise. Steps are whole training steps of
random batches, tables and optimizers included. Useful FLOPs are three times those of a forward pass over valid events
(`kunlun_jax.flops`). The peak on a CPU is that of a matrix product, the best of any round; on a GPU the datasheet's.

All rows take turns in one process, so that a busy machine slows all alike; ratios are to the row before, of the same
round, and their median is told. Rows of one setting (size and lengths) are stored together as soon as they are
measured, and a setting that is there is not measured again: the same command goes on after it, and one that has nothing
left to do prints the table and draws the picture.

Both settings of base took 65 minutes on one slow CPU core (c0cccbd), 24 of them to compile, and 9.4 GB. Expected: at
jagged lengths MFU from 10% to 39% and 4.5 times the examples/s, most of it by packing and CompSkip; at full lengths,
where nothing can be packed, MFU from 51% to 39% and 2.5 times the examples/s.

On a GPU the same command measures in bfloat16. No GPU has run it yet.
"""

import dataclasses
import os
import statistics
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from flax import nnx

from experiments.compilation import keep_compiled
from experiments.mfu_ladder import SIZES, TITLES, Rung, kunlun_of, ladder, synthetic_schema
from experiments.mfu_report import picture, table
from experiments.padded import registered
from experiments.random_batches import Lengths, in_rectangles, longest_history, random_batch
from experiments.result_rows import RESULTS, measured_in, store, stored
from experiments.step_times import StepTimes, take_turns
from kunlun_jax import flops
from kunlun_jax.batch import Batch
from kunlun_jax.data.schema import Schema
from kunlun_jax.mfu import Peak
from kunlun_jax.training.config import TrainConfig
from kunlun_jax.training.step import Trainer

BATCH = {"cpu": {"jagged": 64, "full": 8}, "gpu": {"jagged": 1024, "full": 128}}
"""Examples by backend and lengths: steps of seconds on two cores; a GPU's are guesses, which nobody has tried."""
STEPS = 1000
"""Of the run whose schedule the optimizers follow."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of the ladder."""

    size: Literal["base", "large", "small", "tiny"] = "base"
    """The preset of the whole of Kunlun; it cuts histories, too, to 500, 1000, 200 and 40 events of each type."""
    lengths: tuple[Lengths, ...] = ("jagged", "full")
    """Lengths of histories: "jagged" as in KuaiRand-Pure, a fourteenth of the cut on average, or "full"."""
    rows: tuple[str, ...] = tuple(TITLES)
    """Rows to measure, in the ladder's order; ratios are to the one before of those named."""
    batch: int | None = None
    """Examples of a batch; default: 64 (jagged) and 8 (full) on a CPU, 1024 and 128 on a GPU."""
    rounds: int = 7
    """Turns of each row; medians are reported."""
    calls: int = 2
    """Steps of a turn that count; one goes before them, for a process gives memory back while others run."""
    jagged: str | None = None
    """Implementation of the jagged operators; default: xla on a CPU, mosaic on a GPU."""
    out: Path | None = None
    """JSON file of the rows; default experiments/results/DEVICE/mfu.json. The picture goes beside it."""
    dirty: bool = False
    """Measure code with uncommitted changes."""

    def __post_init__(self):
        unknown = sorted(set(self.rows) - set(TITLES))
        if unknown or not self.rows:
            raise ValueError(f"rows names {unknown}; name some of {list(TITLES)}")
        for name, least in (("rounds", 3), ("calls", 1), ("batch", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")


class Subject(StepTimes):
    """One row: its compiled step, its state and its batch.

    Args:
      packed: the batch on the host.
      jagged: implementation of what does not pad.
    """

    def __init__(self, rung: Rung, schema: Schema, config: TrainConfig, packed: Batch, jagged: str):
        longest = longest_history(packed)
        # InterFormer's histories have its CLS tokens in front.
        more = -(-getattr(rung.model, "cls_tokens", 0) // 8) * 8
        with registered(longest + more, jagged) as (all_pad, gdpa_pads):
            names = {"all": all_pad, "gdpa": gdpa_pads, "none": jagged}
            model = dataclasses.replace(rung.model, implementation=names[rung.pads]).build(
                schema, base_rate=(0.1,) * len(schema.tasks), rngs=nnx.Rngs(params=jax.random.key(0))
            )
            trainer = Trainer(model, config.optimizer, steps=STEPS, log_every=20, seed=0)
            batch = jax.device_put(in_rectangles(packed, longest) if rung.rectangles else packed)
            super().__init__(trainer, trainer.init(), [batch])
        self.size = packed.size
        self.parts = model.parts({name: np.asarray(events.lengths) for name, events in packed.events.items()})
        self.implementation = names[rung.pads]

    def result(self, limit: Peak, before: "Subject | None") -> dict[str, Any]:
        """Numbers of this row; ratios to the one before it."""
        memory = self.compiled.memory_analysis()
        assert memory is not None, "this backend does not tell the memory of a compiled step"
        useful = flops.TRAINING_FACTOR * flops.total_flops(self.parts)
        rate = self.size / statistics.median(self.seconds)
        found = {
            "implementation": self.implementation,
            "parameters": flops.total_parameters(self.parts),
            "useful_flops_per_example": useful,
            "step_seconds": statistics.median(self.seconds),
            "step_seconds_all": self.seconds,
            "examples_per_second": rate,
            "mfu": useful * rate / limit.flops_per_second,
            "peak_memory_bytes": memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes,
            "compile_seconds": self.compile_seconds,
        }
        if before is not None:
            faster = self.times_as_fast_as(before)
            work = flops.total_flops(self.parts) / flops.total_flops(before.parts)
            found |= {"speed_ratio": faster, "mfu_ratio": faster * work}
        return found


def measure(args: Arguments, lengths: Lengths, batch: int, jagged: str) -> list[dict[str, Any]]:
    """The rows of one setting."""
    schema, config = synthetic_schema(), SIZES[args.size]
    packed = random_batch(schema, batch, config.loader.max_events, lengths)
    rungs = ladder(kunlun_of(args.size))
    subjects = {}
    for name in (name for name in TITLES if name in args.rows):
        subjects[name] = Subject(rungs[name], schema, config, packed, jagged)
        first = subjects[name].run(1)
        print(f"{name}: compiled in {subjects[name].compile_seconds:.0f} s, first step {first:.2f} s", file=sys.stderr)
    limit = take_turns(subjects.values(), args.rounds, args.calls, config.model.compute_dtype)
    events = {name: np.asarray(packed.events[name].lengths) for name in sorted(packed.events)}
    shared = {
        "mean_events": {name: float(n.mean()) for name, n in events.items()},
        "longest_events": {name: int(n.max()) for name, n in events.items()},
        "padded_to": longest_history(packed),
        "peak": dataclasses.asdict(limit),
    }
    order = list(subjects.values())
    return [
        {"name": name, **subject.result(limit, before), **shared}
        for (name, subject), before in zip(subjects.items(), [None, *order[:-1]], strict=True)
    ]


def key_of(row: dict[str, Any]) -> tuple:
    """What makes two rows the same measurement, in the order of the table."""
    return list(SIZES).index(row["size"]), row["lengths"] == "full", list(TITLES).index(row["name"])


def run(args: Arguments, path: Path) -> None:
    """Measures what is not stored yet."""
    started_in = measured_in(args.dirty)
    backend = jax.default_backend()
    jagged = args.jagged or ("mosaic" if backend == "gpu" else "xla")
    for lengths in args.lengths:
        batch = args.batch or BATCH[backend][lengths]
        settings = {"batch": batch, "rounds": args.rounds, "calls": args.calls, "jagged": jagged}
        where = {"size": args.size, "lengths": lengths, "settings": settings}
        there = {row["name"] for row in stored(path) if all(row[name] == value for name, value in where.items())}
        if set(args.rows) <= there:
            continue
        load = round(os.getloadavg()[0], 2)
        for row in measure(args, lengths, batch, jagged):
            store(path, {**where, **row, "environment": {**started_in, "load_average": load}}, key_of)


def main(arguments: list[str] | None = None) -> int:
    """Parses flags, measures what is missing, prints and draws; returns the exit code."""
    args = tyro.cli(Arguments, args=arguments, prog="experiments.mfu", description=__doc__)
    path = args.out or RESULTS / jax.default_backend() / "mfu.json"
    keep_compiled(None)
    try:
        run(args, path)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = stored(path)
    print(table(rows))
    picture(rows, path.with_suffix(".png"))
    print(f"rows in {path}, picture in {path.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
