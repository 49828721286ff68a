"""A run's folder: ``config.json metrics.jsonl env.json checkpoints/``, from which tables and plots are made."""

import json
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

VERSIONS_OF = ("kunlun_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pyarrow")
MAY_DIFFER = ("config.data.root", "config.data.cache", "config.run.dir", "config.run.progress")
"""Fields of config.json that a continued run may change: where things are, and what is shown."""
TIMING = ("seconds", "examples_per_second", "flops_per_second")
"""Fields of a metrics line that differ from run to run; all others are the same bit for bit."""


class ConfigMismatch(ValueError):
    """A run directory holds another config than the one asked for."""


class RunDirectory:
    """Opens or makes a run directory.

    Args:
      path: the folder.
      config: plain JSON values that determine the run.

    Raises:
      ConfigMismatch: the folder was started with another config; the message shows each difference.
    """

    def __init__(self, path: Path, config: dict[str, Any]):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.path.mkdir(parents=True, exist_ok=True)
        stored = self.path / "config.json"
        config = json.loads(json.dumps(config))
        if stored.exists():
            differences = [item for item in diff(json.loads(stored.read_text()), config) if item[0] not in MAY_DIFFER]
            if differences:
                raise ConfigMismatch(
                    f"{stored} was made by another config; go on with that one, or name another --run.dir:\n"
                    + "\n".join(f"  {name}: there {old!r}, now {new!r}" for name, old, new in differences)
                )
        else:
            # The config comes last: a directory without one is a new one, whatever a kill left in it.
            write_atomic(self.path / "env.json", json.dumps(environment(), indent=2) + "\n")
            write_atomic(stored, json.dumps(config, indent=2) + "\n")

    def truncate_metrics(self, step: int) -> None:
        """Drops lines behind `step`, and a line that a kill cut short: a restart writes them again."""
        kept = [line for line in read_metrics(self.metrics) if line["step"] <= step]
        write_atomic(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def log(self, **line: Any) -> None:
        """Appends a line to ``metrics.jsonl``; it is on disk when this returns."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; an unfinished last line is left out, an absent file has none.

    Raises:
      ValueError: a line before the last is no JSON.
    """
    if not path.exists():
        return []
    text = path.read_text()
    lines = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is no JSON: {error}") from error
    return lines


def diff(old: Any, new: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Leaves in which two JSON values differ: dotted name, old, new; an absent one reads as "(absent)"."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            item
            for key in dict.fromkeys([*old, *new])
            for item in diff(old.get(key, "(absent)"), new.get(key, "(absent)"), f"{name}.{key}".lstrip("."))
        ]
    return [] if old == new else [(name, old, new)]


def write_atomic(path: Path, text: str) -> None:
    """Writes `path` so that a reader, or a crash, sees the old text or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def commit() -> str:
    """The commit of this checkout, with "+changes" where it has any; "unknown" outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if status.stdout.strip() else "")


def command() -> str:
    """How this process was started; of absolute paths the last name alone, since results are stored with it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["python", "-m", spec.name] if spec is not None else [Path(sys.argv[0]).name]
    return shlex.join([*program, *(Path(part).name if part.startswith(os.sep) else part for part in sys.argv[1:])])


def environment() -> dict[str, Any]:
    """Versions, device and commit: what a number needs beside it."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in VERSIONS_OF},
        "device": device.device_kind,
        "devices": jax.device_count(),
        "backend": jax.default_backend(),
        "cpu_count": os.cpu_count(),
        "machine": platform.machine(),
        "commit": commit(),
        "command": command(),
    }
