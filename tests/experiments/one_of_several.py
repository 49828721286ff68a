"""``python -m tests.experiments.one_of_several POINT FLAGS``: experiments.train in one of several processes.

Points: ``none``; ``kill:I:K``, by which process I gets SIGKILL before step K; ``term:I:K``, SIGTERM. Steps are slow
with ``term``: all have to notice it, which takes a second, and those of these runs would be over before.
"""

import os
import signal
import sys
import time

import jax

from experiments.train import main
from kunlun_jax.training import run
from kunlun_jax.training.step import Trainer

STEP_S = 0.2


def interrupt(kind: str, process: int, step: int) -> None:
    class Interrupted(Trainer):
        begun = None

        def step(self, state, batch):
            self.begun = jax.device_get(state.step).item() if self.begun is None else self.begun + 1
            if kind == "term":
                time.sleep(STEP_S)
            if jax.process_index() == process and self.begun == step - 1:
                os.kill(os.getpid(), {"kill": signal.SIGKILL, "term": signal.SIGTERM}[kind])
            return super().step(state, batch)

    run.Trainer = Interrupted


if __name__ == "__main__":
    if sys.argv[1] != "none":
        kind, process, step = sys.argv[1].split(":")
        interrupt(kind, int(process), int(step))
    sys.exit(main(sys.argv[2:]))
