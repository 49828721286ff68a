"""``python -m tests.experiments.interrupted POINT FLAGS``: experiments.train, sent a signal at an exact point.

Points: ``step:K`` after the K-th step of the run, ``line:K`` in the middle of writing its metrics line,
``commit:K`` when its checkpoint is written but not yet renamed to its final name, ``eval:SPLIT`` before the line of
that split's evaluation at the end, each by SIGKILL; ``term:K`` is SIGTERM after the K-th step, ``int:K`` SIGINT, and
``evaluated:K`` SIGTERM between the evaluations of two splits after it.
"""

import os
import signal
import sys
from pathlib import Path

import jax
from orbax.checkpoint._src.path import async_path

from experiments.train import main
from kunlun_jax.training import run
from kunlun_jax.training.run_directory import RunDirectory
from kunlun_jax.training.step import Trainer


def send_behind_step(number: int, sent: signal.Signals) -> None:
    class Interrupted(Trainer):
        def step(self, state, batch):
            state, sums = super().step(state, batch)
            if jax.device_get(state.step) == number:
                os.kill(os.getpid(), sent)
            return state, sums

    run.Trainer = Interrupted


def kill_in_line(number: int) -> None:
    log = RunDirectory.log

    def cut_log(self, **line):
        if line["step"] == number and line["kind"] == "train":
            log(self, **line)
            text = self.metrics.read_text()
            self.metrics.write_text(text[:-40])
            kill()
        log(self, **line)

    RunDirectory.log = cut_log


def kill_in_commit(number: int) -> None:
    rename = async_path.rename

    async def cut_rename(source, target):
        if Path(target).name == str(number):
            kill()
        await rename(source, target)

    async_path.rename = cut_rename


def kill_before_evaluation(split: str) -> None:
    log = RunDirectory.log

    def cut_log(self, **line):
        if line.get("split") == split:
            kill()
        log(self, **line)

    RunDirectory.log = cut_log


def stop_between_evaluations(number: int) -> None:
    log = RunDirectory.log

    def logged(self, **line):
        log(self, **line)
        if line["kind"] == "eval" and line["step"] == number:
            os.kill(os.getpid(), signal.SIGTERM)

    RunDirectory.log = logged


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    kind, _, where = sys.argv[1].partition(":")
    match kind:
        case "step":
            send_behind_step(int(where), signal.SIGKILL)
        case "term":
            send_behind_step(int(where), signal.SIGTERM)
        case "int":
            send_behind_step(int(where), signal.SIGINT)
        case "line":
            kill_in_line(int(where))
        case "commit":
            kill_in_commit(int(where))
        case "eval":
            kill_before_evaluation(where)
        case "evaluated":
            stop_between_evaluations(int(where))
        case _:
            raise ValueError(f"unknown point {sys.argv[1]!r}")
    sys.exit(main(sys.argv[2:]))
