"""Where programs that tests compiled are kept: most of the time of these tests is XLA's (LOG.md)."""

import contextlib
import hashlib
import os
import platform
import time
from pathlib import Path

KEPT_S = 14 * 24 * 3600
"""Programs are removed when they are older."""


def folder() -> Path:
    """A folder of the user's cache, so that clones and worktrees share it; in this clone if that cannot be written.

    Programs are for one kind of processor, of which JAX's own key says too little: home directories are shared between
    machines.
    """
    with contextlib.suppress(OSError):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        found = cache / "kunlun_jax" / "tests" / _processor()
        found.mkdir(parents=True, exist_ok=True)
        if os.access(found, os.W_OK | os.X_OK):
            return found
    return Path(__file__).resolve().parents[1] / ".pytest_cache" / "jax"


def remove_old(programs: Path) -> None:
    """Removes what was compiled long ago, with files that processes left half-written."""
    for program in programs.glob("*"):
        with contextlib.suppress(OSError):  # another run was faster
            if program.stat().st_mtime < time.time() - KEPT_S:
                program.unlink()


def _processor() -> str:
    features = ""
    with contextlib.suppress(OSError):  # on Linux alone
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(f"{platform.machine()} {platform.processor()} {features}".encode()).hexdigest()[:16]
