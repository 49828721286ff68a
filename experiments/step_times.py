"""Times of compiled training steps that take turns, so that a machine that is busy for a while slows all alike."""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Collection, Sequence

import jax

from kunlun_jax.batch import Batch
from kunlun_jax.mfu import ROUNDS, Peak, measured_flops, peak
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
