"""Signals that ask a run to stop, looked at between batches."""

import itertools
import os
import signal
import sys

import jax
from jax.experimental import multihost_utils

_ASKED = itertools.count(1)
"""Numbers the questions of this process to the others, over all runs in it."""


class Stop:
    """Remembers SIGTERM and SIGINT, for loops to look at between batches; a second SIGINT ends the process at once.

    Of several processes, a signal to one stops all before the same batch. JAX's preemption service has the handler of
    SIGTERM then, tells the others in the background, and finds a batch that none has begun; asking it takes less than a
    microsecond.

    Attributes:
      signal: name of the signal that was noticed, if any.
    """

    def __init__(self):
        self.signal: str | None = None

    def __enter__(self) -> "Stop":
        alone = jax.process_count() == 1
        numbers = (signal.SIGTERM, signal.SIGINT) if alone else (signal.SIGINT,)
        self._old = {number: signal.signal(number, self._remember if alone else self._pass_on) for number in numbers}
        self._interrupted = False
        return self

    def reached(self) -> bool:
        """Whether to stop here. Of several processes each has to ask before the same batches."""
        if (
            self.signal is None
            and jax.process_count() > 1
            and multihost_utils.reached_preemption_sync_point(next(_ASKED))
        ):
            self.signal = signal.SIGTERM.name
        return self.signal is not None

    def __exit__(self, *_) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _) -> None:
        if self.signal is not None and number == signal.SIGINT:
            _end(number)
        self.signal = signal.Signals(number).name

    def _pass_on(self, number: int, _) -> None:
        """A first SIGINT as the SIGTERM that the preemption service waits for."""
        if self._interrupted:
            _end(number)
        self._interrupted = True
        os.kill(os.getpid(), signal.SIGTERM)


def _end(number: int) -> None:
    print("\nended at once, as asked twice; the last checkpoint stays", file=sys.stderr, flush=True)
    os._exit(128 + number)
