"""Signals that ask a run to stop, as a flag that is checked between steps."""

import signal


class Stop:
    """Remembers SIGTERM and SIGINT, for the loop to look at between steps."""

    def __init__(self):
        self.signal: str | None = None

    def __enter__(self) -> "Stop":
        self._old = {s: signal.signal(s, self._remember) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _) -> None:
        self.signal = signal.Signals(number).name
