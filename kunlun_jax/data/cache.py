"""Where prepared data sets are kept between runs, and how they get there: completely or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def default_cache() -> Path:
    """The folder of the environment variable ``KUNLUN_CACHE``, else ``~/.cache/kunlun_jax``; it may not exist yet."""
    named = os.environ.get("KUNLUN_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "kunlun_jax"


def build_once(folder: Path, last: str, make: Callable[[Path], bool]) -> bool:
    """Makes `folder`, if it does not exist yet, by ``make(empty folder)`` next to it and a rename at the end.

    Args:
      folder: its name determines its contents.
      last: name of the file that is written last, so a folder that has it is complete.
      make: returns False to give up; then, as after an exception, nothing is left.

    Returns:
      Whether `folder` exists now.
    """
    if (folder / last).exists():
        return True
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name[:32]}-", dir=folder.parent))
    try:
        if not make(work):
            return False
        work.chmod(0o755)  # mkdtemp's is private; several users may share a cache
        try:
            work.rename(folder)
        except OSError:
            if not (folder / last).exists():  # otherwise another process was faster with the same data
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return True
