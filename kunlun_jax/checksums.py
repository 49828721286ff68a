"""Checksums of the files of a folder, kept beside them, so that damage is found before what it damaged is used.

Written by `seal` when a folder is complete, compared by `damage` when it is used again. A folder with checksums is on
disk whole: its files were written through before their checksums were.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

FILE = "checksums.json"


def seal(folder: Path) -> None:
    """Writes the size, the time of change and the SHA-256 of every file below `folder` into ``checksums.json``.

    All of it is on disk when this returns; it reads some gigabytes a second.
    """
    files = {}
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            files[path.relative_to(folder).as_posix()] = _entry(path, hashlib.file_digest(file, "sha256").hexdigest())
    write_entries(folder / FILE, files)
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def is_sealed(folder: Path) -> bool:
    """Whether `seal` came to its end here."""
    return (folder / FILE).is_file()


def damage(folder: Path, *, trust_times: bool = False) -> str | None:
    """What is not as it was when `folder` was sealed, as a text that names the first such file; None if all is.

    Args:
      folder: a sealed one.
      trust_times: do not read files whose size and time of change are as they were. It takes no time, and misses what
        a disk does by itself.
    """
    try:
        files = read_entries(folder / FILE)
        if files is None:
            return f"{FILE} was changed"
        for name, entry in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            size = path.stat().st_size
            if size != entry["size"]:
                return f"{name} has {size} bytes, not {entry['size']}"
            if trust_times and path.stat().st_mtime_ns == entry["mtime_ns"]:
                continue
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                    return f"{name} was changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{FILE} cannot be read ({error})"
    return None


def write_entries(path: Path, files: dict[str, Any]) -> None:
    """Writes what is known of some files, with a checksum of its own; it is on disk whole, or as it was before."""
    partial = path.with_name(f".{path.name}-{os.getpid()}")  # several processes may write it at a time
    try:
        with partial.open("w") as file:
            file.write(json.dumps({"files": files, "sha256": _digest_of(files)}, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def read_entries(path: Path) -> dict[str, Any] | None:
    """What `write_entries` wrote; None if it is not that any more.

    Raises:
      OSError, ValueError, KeyError, TypeError, AttributeError: the file cannot be read.
    """
    stored = json.loads(path.read_text())
    return stored["files"] if _digest_of(stored["files"]) == stored["sha256"] else None


def _digest_of(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, indent=1).encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    of_this_module = (FILE, f".{FILE}-")
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(of_this_module))


def _entry(path: Path, sha256: str) -> dict[str, Any]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256}
