"""A process that measures one thing after another, and may crash, hang or lose the device without harm to the results.

A job is a generator function of a module. It runs in the worker, and its messages come back over a pipe. A worker that
ends, or says nothing for too long, is replaced by a new one, which opens the device again; whatever it was at then gets
the reason for a result, and the job goes on with the rest.
"""

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

START_S = 60.0
"""Seconds that a process may take to start and to import what a job needs."""


class CannotRun(Exception):
    """Why something is not measured; the message is for the results."""


class Lost(CannotRun):
    """The worker ended or hung; the message says which."""


def reason(error: BaseException) -> str:
    """Type and first lines of an error, short enough for a table; what `CannotRun` says as it is."""
    if isinstance(error, CannotRun):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


class OutOfTime(Exception):
    """The budget is spent."""


class Message(NamedTuple):
    """What a job says of some of its items.

    Attributes:
      items: of the job's first argument; any hashable values that pickle.
      result: their result; None where the job is about to work on them, so that they are to blame if it does not
        return.
      begins: whether that is something new, which is not begun once the budget is spent.
    """

    items: tuple[Any, ...]
    result: dict[str, Any] | None = None
    begins: bool = True


def _serve(pipe: Connection) -> None:
    """Runs jobs until none is left; an exception ends the process, its traceback on standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent as well, which ends this one
    with pipe, contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            job, arguments = pipe.recv()
            pipe.send(None)  # what the job needs is imported
            try:
                for message in job(*arguments):
                    pipe.send(message)
                pipe.send(None)
            except Exception as error:
                pipe.send(Lost(reason(error)))
                raise


class Worker:
    """One process for jobs, started by the first of them and again whenever it has ended.

    Args:
      limit_s: seconds that may pass between two messages.
    """

    def __init__(self, limit_s: float):
        self.limit_s = limit_s
        self._process, self._pipe = None, None

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process and gives its memory back; the next job starts another."""
        if self._process is not None and self._pipe is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
        self._process, self._pipe = None, None

    def ask(self, job: Callable[..., Iterator[Any]], *arguments: Any) -> Iterator[Any]:
        """Yields what ``job(*arguments)`` yields; Lost if the process ends or is silent for longer than allowed."""
        done = False
        try:
            if self._process is None or not self._process.is_alive():
                self.close()
                context = multiprocessing.get_context("spawn")  # a fork of a process that has threads may hang
                self._pipe, theirs = context.Pipe()
                self._process = context.Process(target=_serve, args=(theirs,))
                self._process.start()
                theirs.close()  # so that the end of the process is the end of the pipe
            assert self._pipe is not None
            self._pipe.send((job, arguments))
            self._next(max(START_S, self.limit_s))
            while (found := self._next(self.limit_s)) is not None:
                yield found
            done = True
        finally:
            if not done:
                self.close()

    def _next(self, limit_s: float) -> Any:
        assert self._process is not None and self._pipe is not None
        if not self._pipe.poll(limit_s):
            raise Lost(f"no result within {limit_s:g} s; its process was ended")
        try:
            found = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            found = Lost()
        if isinstance(found, Lost):
            self._process.join(5)  # seconds for its traceback and for what it has open
            code = self._process.exitcode
            signalled = f" ({signal.Signals(-code).name})" if code is not None and code < 0 else ""
            raise found if found.args else Lost(f"its process ended with {code}{signalled}")
        return found


def collect(
    items: Iterable[Any],
    ask: Callable[[list[Any]], Iterator[Message]],
    put: Callable[[Any, dict[str, Any]], None],
    deadline: float = float("inf"),
) -> None:
    """Asks until each item has its results or a reason why not.

    Args:
      items: what to work on.
      ask: a job on the items that are left, by `Worker.ask`.
      put: takes an item and a result as it comes; one that took the worker with it gets ``{"cannot_run": why}``.
      deadline: when nothing new is begun any more, by `time.monotonic`.

    Raises:
      OutOfTime: past the deadline.
    """
    left = list(items)
    while left and time.monotonic() <= deadline:
        running = tuple(left)  # before its first message a job is at all of them
        try:
            for items, result, begins in ask(left):
                running = items if result is None else ()
                if result is not None:
                    for item in items:
                        put(item, result)
                    left = [item for item in left if item not in items]
                elif begins and time.monotonic() > deadline:
                    raise OutOfTime
            return
        except Lost as lost:
            for item in running:
                put(item, {"cannot_run": str(lost)})
            left = [item for item in left if item not in running]
    if left:
        raise OutOfTime
