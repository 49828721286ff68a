"""Times of compiled training steps that take turns, so that a machine that is busy for a while slows all alike."""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Collection, Sequence
from typing import Any

import jax

from kunlun_jax.batch import Batch
from kunlun_jax.data.dataset import Dataset
from kunlun_jax.flops import TRAINING_FACTOR, total_flops
from kunlun_jax.mfu import ROUNDS, Peak, measured_flops, peak
from kunlun_jax.training.config import TrainConfig
from kunlun_jax.training.run import prepare
from kunlun_jax.training.step import Trainer, TrainState


class StepTimes:
    """The compiled step of a trainer, and how long it took at each turn.

    Args:
      trainer: whose step it is. It is not kept, for it holds the parameters once more.
      state: that the first step begins with; it is given up.
      batches: on the device, which steps have one after the other, again and again.

    Attributes:
      state: that of the last step.
      compiled: the step.
      compile_seconds: what compiling took.
      seconds: of a step, one number a turn.
    """

    def __init__(self, trainer: Trainer, state: TrainState, batches: Sequence[Batch]):
        self.state = state
        self._batches = itertools.cycle(batches)
        began = time.perf_counter()
        self.compiled = trainer.compile_step(state, batches[0])
        self.compile_seconds = time.perf_counter() - began
        self.seconds: list[float] = []

    def run(self, steps: int) -> float:
        """Seconds of a step over `steps` steps."""
        began = time.perf_counter()
        for batch in itertools.islice(self._batches, steps):
            self.state, sums = self.compiled(self.state, batch)
        jax.block_until_ready((self.state, sums))
        return (time.perf_counter() - began) / steps

    def times_as_fast_as(self, other: "StepTimes") -> float:
        """Its steps for each of another's, the median over their rounds: what slows a round slows both."""
        return statistics.median(theirs / own for own, theirs in zip(self.seconds, other.seconds, strict=True))


class RunSteps(StepTimes):
    """Whole steps of a training run, tables and optimizers included.

    Args:
      config: of the run.
      dataset: its data.
      batches: how many there are, the first of the run, which steps take in turn.

    Attributes:
      flops: useful forward FLOPs per example.
      batch_size: examples of a step.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset, batches: int):
        run = prepare(config, dataset)
        with run.loader("train", training=True) as loader:
            some = [run.trainer.put(batch) for batch, _ in itertools.islice(loader, batches)]
        super().__init__(run.trainer, run.trainer.init(), some)
        self.flops = total_flops(run.parts)
        self.batch_size = config.loader.batch_size

    def result(self, limit: Peak, baseline: "RunSteps | None") -> dict[str, Any]:
        """Its numbers, and how fast it is and how much of the peak it uses beside the baseline, by round."""
        step = statistics.median(self.seconds)
        rate = self.batch_size / step
        found = {
            "flops_per_example": self.flops,
            "step_seconds": step,
            "step_seconds_all": self.seconds,
            "examples_per_second": rate,
            "mfu": TRAINING_FACTOR * self.flops * rate / limit.flops_per_second,
            "peak": dataclasses.asdict(limit),
            "compile_seconds": round(self.compile_seconds, 1),
        }
        if baseline is not None:
            faster = self.times_as_fast_as(baseline) * self.batch_size / baseline.batch_size
            found |= {"speed_ratio": faster, "mfu_ratio": faster * self.flops / baseline.flops}
        return found


def take_turns(subjects: Collection[StepTimes], rounds: int, steps: int, dtype: jax.typing.DTypeLike) -> Peak:
    """Adds `rounds` turns to the seconds of each subject, and returns the machine's peak.

    One step goes before the `steps` that count, for a process gives memory back while others run. A peak that has to be
    measured, for matrix products of `dtype`, is the best of all rounds.
    """
    dtype = jax.numpy.dtype(dtype)
    limit = peak(dtype)
    for number in range(rounds):
        if limit.source.startswith("measured"):
            rate = max(limit.flops_per_second, measured_flops(dtype))
            source = f"measured, a product of matrices, the best of {ROUNDS} in each of {number + 1} rounds"
            limit = dataclasses.replace(limit, flops_per_second=rate, source=source)
        for subject in subjects:
            subject.run(1)
            subject.seconds.append(subject.run(steps))
    return limit
