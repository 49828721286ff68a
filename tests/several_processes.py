"""Several processes of a run on this machine: a free port, a bound on their time, and what they print if one fails."""

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from tests.processes import Process
from tests.slowness import slower

REPOSITORY = Path(__file__).resolve().parents[1]
LIMIT_S = 150 * slower()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


class Several:
    """The same module, started once for each process; the end of a `with` block is the end of all of them.

    Args:
      count: processes.
      devices: CPU devices of each.
      module: run by ``python -m``.
      arguments: of all; those that name process and coordinator come after them.
      axis: of the mesh, over which all devices are.
      logs: folder for what they print.
    """

    def __init__(self, count: int, devices: int, module: str, *arguments: str, axis: str = "data", logs: Path):
        mesh = (f"--mesh.{axis}", str(count * devices), "--mesh.processes", str(count))
        mesh += ("--mesh.coordinator", f"localhost:{free_port()}")
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            # Only process 0 keeps what it compiles, so in the others it is to be quick.
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
        }
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = [logs / f"{number}.log" for number in range(count)]
        self.processes = []
        for number, log in enumerate(self._logs):
            with log.open("w") as file:
                command = [sys.executable, "-m", module, *arguments, *mesh, "--mesh.process", str(number)]
                self.processes.append(Process(command, cwd=REPOSITORY, env=environment, stdout=file, stderr=file))

    def __enter__(self) -> "Several":
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes:
            process.end()
            process.wait()

    def printed(self, number: int) -> str:
        return self._logs[number].read_text()

    def finish(self, timeout: float = LIMIT_S) -> list[int]:
        """Waits for all; their exit codes."""
        deadline = time.monotonic() + timeout
        while any(process.poll() is None for process in self.processes):
            if time.monotonic() > deadline:
                running = [number for number, process in enumerate(self.processes) if process.poll() is None]
                pytest.fail(f"processes {running} took over {timeout:.0f} s\n{self._all()}")
            time.sleep(0.05)
        return [process.returncode for process in self.processes]

    def succeed(self, timeout: float = LIMIT_S) -> None:
        """Waits for all, none of which may fail."""
        with self:
            codes = self.finish(timeout)
        assert not any(codes), f"exit codes {codes}\n{self._all()}"

    def _all(self) -> str:
        return "\n".join(f"--- process {number}\n{log.read_text()}" for number, log in enumerate(self._logs))
