"""Digests of a data set's files, which name its prepared form, kept so that a start does not read every byte again.

A file whose size, inode and times are as they were when it was read has the digest that it had. Every write sets the
time of change (ctime), which no program can set back, so a file that was exchanged for one of the same size and time of
modification is read again; what a disk changes by itself is not seen.
"""

import hashlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kunlun_jax.checksums import read_entries, write_entries
from kunlun_jax.progress import ProgressBar

logger = logging.getLogger(__name__)

FILE = "digests.json"
"""Below the folder for prepared data."""
_SETTLED_NS = 2_000_000_000
"""A file changed later than this before it is read may change once more within one tick of the file system's clock, two
seconds at the coarsest, and is not remembered."""


def digests(files: Sequence[Path], cache: Path) -> list[str]:
    """SHA-256 of each file as hexadecimal digits; files that changed are read, about a second per gigabyte.

    Args:
      files: existing ones.
      cache: folder that remembers; made if there is something to remember. If it cannot be written, nothing is.
    """
    stamps = {str(path.resolve()): _stamp(path) for path in files}
    known = _known(cache / FILE)
    found = {name: known[name]["sha256"] for name, stamp in stamps.items() if known.get(name, {}).get("stamp") == stamp}
    changed = [name for name in stamps if name not in found]
    now = time.time_ns()
    with ProgressBar(
        desc="hashing", total=sum(stamps[name]["size"] for name in changed), unit="B", unit_scale=True, delay=2.0
    ) as bar:
        for name in changed:
            with open(name, "rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
            bar.update(stamps[name]["size"])
    settled = {
        name: {"stamp": stamps[name], "sha256": found[name]}
        for name in changed
        if max(stamps[name]["mtime_ns"], stamps[name]["ctime_ns"]) < now - _SETTLED_NS and _stamp(name) == stamps[name]
    }
    if settled:
        _remember(cache / FILE, settled)
    return [found[str(path.resolve())] for path in files]


def _stamp(path: Path | str) -> dict[str, int]:
    stat = os.stat(path)
    return {"size": stat.st_size, "inode": stat.st_ino, "mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}


def _known(path: Path) -> dict[str, Any]:
    """What was remembered; nothing if the file is missing or damaged."""
    try:
        return read_entries(path) or {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _remember(path: Path, settled: dict[str, Any]) -> None:
    # Read anew, for another process may have written meanwhile; if both write at once, one reads its files again.
    entries = {name: entry for name, entry in _known(path).items() if os.path.exists(name)} | settled
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_entries(path, entries)
    except OSError as error:
        logger.info("%s cannot be written (%s), so the next start reads all files again", path, error)
