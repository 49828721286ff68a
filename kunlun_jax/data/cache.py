"""Where prepared data sets are kept between runs, and how they get there: completely or not at all."""

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from kunlun_jax.checksums import FILE, damage, is_sealed, seal

logger = logging.getLogger(__name__)

_LOCK = ".lock"
"""Held in a folder that is being made, for as long as its process lives."""


def default_cache() -> Path:
    """The folder of the environment variable ``KUNLUN_CACHE``, else ``~/.cache/kunlun_jax``; it may not exist yet."""
    named = os.environ.get("KUNLUN_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "kunlun_jax"


def build_once(folder: Path, make: Callable[[Path], bool]) -> bool:
    """Makes `folder`, if it is not there whole, by ``make(empty folder)`` next to it and a rename at the end.

    A folder that is there is compared with its checksums (`kunlun_jax.checksums`; files of the same size and time of
    change are not read) and made again if it differs. What killed processes left behind is removed.

    Args:
      folder: its name determines its contents.
      make: returns False to give up; then, as after an exception, nothing is left.

    Returns:
      Whether `folder` exists now.
    """
    wrong = _fault(folder)
    if wrong is None:
        return True
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder.parent)
    with _workshop(folder) as work:
        if folder.exists():
            logger.warning("%s is made again: %s", folder, wrong)
            # Aside first: who has mapped it keeps what was mapped, and nobody opens half of it.
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                folder.rename(work / "old")
        new = work / "new"
        new.mkdir()
        try:
            if not make(new):
                return False
            seal(new)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT) and not error.filename:
                raise OSError(error.errno, error.strerror, str(folder)) from error
            raise
        try:
            new.rename(folder)
        except OSError:
            if not is_sealed(folder):  # otherwise another process was faster with the same data
                raise
    return True


def _fault(folder: Path) -> str | None:
    """Why a folder cannot be used as it is; None if it can."""
    if not folder.exists():
        return "there is none"
    return damage(folder, trust_times=True) if is_sealed(folder) else f"it has no {FILE}, so an older version made it"


@contextlib.contextmanager
def _workshop(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, gone in the end; others see by its lock whether its process lives."""
    while True:
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name[:32]}-", dir=folder.parent))
        lock = (work / _LOCK).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (work / _LOCK).exists():
            break
        lock.close()  # taken for a leftover in the moment before it was locked
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        lock.close()


def _remove_leftovers(parent: Path) -> None:
    """Removes workshops whose process is gone."""
    for lock in parent.glob(f".*-*/{_LOCK}"):
        # In use, or gone meanwhile.
        with contextlib.suppress(OSError), lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
