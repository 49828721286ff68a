"""Where a number comes from: commit, command, versions, device."""

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
    """Versions, device, commit and command: what a number needs beside it."""
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
