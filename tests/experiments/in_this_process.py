"""A stand-in for `experiments.kernel_benchmark.worker.Worker` that starts no process and may be lost on demand."""

from collections.abc import Callable
from typing import Any

from experiments.kernel_benchmark.worker import Lost, Message, Worker


class InThisProcess(Worker):
    """Runs jobs here.

    Args:
      limit_s: of the real one.
      lost_to: of what a job is about to work on, what it is lost to; () stands for its start.
    """

    def __init__(self, limit_s: float = 60.0, lost_to: Callable[[tuple[Any, ...]], bool] = lambda items: False):
        super().__init__(limit_s)
        self.lost_to, self.jobs = lost_to, 0

    def ask(self, job, *arguments):
        """What the job yields."""
        self.jobs += 1
        self._live_through(())
        for found in job(*arguments):
            yield found
            if isinstance(found, Message) and found.result is None:
                self._live_through(found.items)

    def _live_through(self, items):
        if self.lost_to(items):
            raise Lost("its process ended with -11 (SIGSEGV)")
