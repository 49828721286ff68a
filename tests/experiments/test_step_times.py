"""`experiments.step_times`: whose turn it is, and what numbers are made of the seconds."""

from typing import Any

import jax.numpy as jnp
import pytest

from experiments import step_times
from experiments.step_times import RunSteps, StepTimes, take_turns
from kunlun_jax.flops import TRAINING_FACTOR
from kunlun_jax.mfu import Peak

PEAK = Peak(1e9, "float32", "measured, once", "cpu", 1)


class FakeTrainer:
    """A step that adds its batch to the state."""

    def compile_step(self, state, batch):
        return lambda state, batch: (state + batch, None)


def test_steps_have_the_batches_in_turn():
    trainer: Any = FakeTrainer()
    times = StepTimes(trainer, jnp.zeros(()), [jnp.float32(1), jnp.float32(10)])
    assert times.run(3) > 0 and times.state == 12
    times.run(1)
    assert times.state == 22 and times.seconds == []


def test_each_subject_has_its_turn_in_every_round_and_the_peak_is_the_best_of_all(monkeypatch):
    order, rates = [], iter([5e8, 3e9, 2e9])

    class Subject(StepTimes):
        def __init__(self, name):
            self.name, self.seconds = name, []

        def run(self, steps):
            order.append((self.name, steps))
            return float(len(order))

    monkeypatch.setattr(step_times, "peak", lambda dtype: PEAK)
    monkeypatch.setattr(step_times, "measured_flops", lambda dtype: next(rates))
    one, other = Subject("one"), Subject("other")
    limit = take_turns([one, other], 3, 4, jnp.float32)
    assert order == [("one", 1), ("one", 4), ("other", 1), ("other", 4)] * 3
    assert one.seconds == [2, 6, 10] and other.seconds == [4, 8, 12]
    assert limit.flops_per_second == 3e9 and "in each of 3 rounds" in limit.source


def test_numbers_of_a_system_beside_the_baseline():
    own, baseline = (RunSteps.__new__(RunSteps) for _ in range(2))
    for subject, flops, seconds in ((own, 2e5, [0.1, 0.4, 0.1]), (baseline, 1e5, [0.2, 0.4, 0.1])):
        subject.flops, subject.seconds, subject.batch_size, subject.compile_seconds = flops, seconds, 256, 1.23
    found = own.result(PEAK, baseline)
    assert found["examples_per_second"] == 2560 and found["step_seconds_all"] == [0.1, 0.4, 0.1]
    assert found["mfu"] == pytest.approx(TRAINING_FACTOR * 2e5 * 2560 / 1e9)
    # Twice the FLOPs, as fast in the median of the rounds: 2, 1 and 1 times.
    assert found["speed_ratio"] == 1 and found["mfu_ratio"] == 2
    assert not {"speed_ratio", "mfu_ratio"} & own.result(PEAK, None).keys()
    baseline.batch_size = 128
    assert own.result(PEAK, baseline)["speed_ratio"] == 2
