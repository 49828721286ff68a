"""Signals that ask a run to stop, as a flag that is checked between batches."""

import os
import signal
import sys


class Stop:
    """Remembers SIGTERM and SIGINT, for loops to look at between batches; a second SIGINT ends the process at once."""

    def __init__(self):
        self.signal: str | None = None

    def __enter__(self) -> "Stop":
        self._old = {s: signal.signal(s, self._remember) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _) -> None:
        if self.signal is not None and number == signal.SIGINT:
            print("\nended at once, as asked twice; the last checkpoint stays", file=sys.stderr, flush=True)
            os._exit(128 + number)
        self.signal = signal.Signals(number).name
