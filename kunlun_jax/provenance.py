"""Where a number comes from: commit, command, versions, device."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

VERSIONS_OF = ("kunlun_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pyarrow")


def commit() -> str:
    """The commit of this checkout, with "+changes" where it has any.

    Outside a checkout it is what the environment variable ``KUNLUN_COMMIT`` names, else "unknown".
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("KUNLUN_COMMIT") or "unknown"
    return head + ("+changes" if status.stdout.strip() else "")


def command() -> str:
    """How this process was started; of absolute paths the last name alone, since results are stored with it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["python", "-m", spec.name] if spec is not None else [Path(sys.argv[0]).name]
    return shlex.join([*program, *(Path(part).name if part.startswith(os.sep) else part for part in sys.argv[1:])])


def version(package: str) -> str:
    """The version of a package; "absent" where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def usable_cpus() -> int | None:
    """Processors that this process may run on, fewer than there are under `taskset`; None where nobody knows."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def process(packages: Sequence[str]) -> dict[str, Any]:
    """What a number needs beside it, all but the device: versions of Python and `packages`, commit and command."""
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "cpu_count": os.cpu_count(),
        "usable_cpus": usable_cpus(),
        "machine": platform.machine(),
        "commit": commit(),
        "command": command(),
    }


def environment() -> dict[str, Any]:
    """Versions, commit, command and JAX's devices, which this opens: what a number needs beside it."""
    devices = {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "backend": jax.default_backend(),
    }
    return process(VERSIONS_OF) | devices
