"""Processes that a test starts: each has a session of its own, a limit on its time, and an end for its whole group."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any, NoReturn

import pytest

from tests.slowness import slower

LIMIT_S = 120 * slower()


class Process(subprocess.Popen):
    """A command in a session of its own; the end of a `with` block is the end of all that is left in that session.

    Output is text and goes to pipes, unless the arguments of `subprocess.Popen` say otherwise.
    """

    def __init__(self, command: Sequence[str | os.PathLike], **more: Any):
        piped = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        super().__init__(command, **(piped | more), start_new_session=True)

    def end(self) -> None:
        """SIGKILL to whoever is left in the group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def __exit__(self, *exception) -> None:
        self.end()
        super().__exit__(*exception)

    def line(self) -> str:
        """The next line that it prints."""
        assert self.stdout is not None
        return self.stdout.readline()

    def finish(self, timeout: float = LIMIT_S, given: str | bytes | None = None) -> subprocess.CompletedProcess:
        """Waits for the end; past `timeout` seconds the group is ended, and the test fails with what was printed."""
        with self:
            try:
                out, err = self.communicate(given, timeout=timeout)
            except subprocess.TimeoutExpired:
                self.end()
                self._fail(timeout, *self.communicate())
        return subprocess.CompletedProcess(self.args, self.returncode, out, err)

    def _fail(self, timeout: float, out: str | bytes | None, err: str | bytes | None) -> NoReturn:
        pytest.fail(f"{self.args} took over {timeout:.0f} s and was ended; it had printed\n{out}\n{err}")


def run(
    command: Sequence[str | os.PathLike],
    timeout: float = LIMIT_S,
    given: str | bytes | None = None,
    **more: Any,
) -> subprocess.CompletedProcess:
    """Runs a command to its end, with `given` as its input; the exit status is for the test to look at."""
    stdin = subprocess.DEVNULL if given is None else subprocess.PIPE
    return Process(command, stdin=stdin, **more).finish(timeout, given)
