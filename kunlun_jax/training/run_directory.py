"""A run's folder: ``config.json metrics.jsonl env.json checkpoints/``, from which tables and plots are made.

Where steps were skipped there is a ``skipped.jsonl`` as well. `json_lines` writes both. No file holds NaN or infinity,
which are no JSON: what is not defined is null.
"""

import contextlib
import fcntl
import json
import logging
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from kunlun_jax.processes import agreed, is_first
from kunlun_jax.provenance import environment
from kunlun_jax.training import json_lines

logger = logging.getLogger(__name__)

MAY_DIFFER = (
    *("config.data.root", "config.data.cache", "config.run.dir", "config.run.progress"),
    *("config.loader.workers", "config.loader.threads", "config.loader.prefetch", "config.mesh", "capacity"),
    *("config.run.max_skipped_streak", "config.run.debug_nans"),
)
"""Fields of config.json that a continued run may change, with all below them: where things are, what is shown, who
packs batches, the devices that share the run, on which the capacities depend, and what becomes of skipped steps."""
TIMING = ("seconds", "examples_per_second", "flops_per_second")
"""Fields of a metrics line that differ from run to run; all others are the same bit for bit."""


class ConfigMismatch(ValueError):
    """A run directory holds another config than the one asked for."""


class RunInUse(ValueError):
    """Another process trains in the run directory."""


class RunDirectory:
    """Opens or makes a run directory. Of several processes the first does so for all, and alone writes in it.

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
        self.skipped = self.path / "skipped.jsonl"
        agreed(lambda: self._open(config))

    def _open(self, config: dict[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        stored = self.path / "config.json"
        config = json.loads(json.dumps(config))
        if stored.exists():
            differences = [
                item
                for item in diff(read_json(stored), config)
                if not f"{item[0]}.".startswith(tuple(f"{name}." for name in MAY_DIFFER))
            ]
            if differences:
                raise ConfigMismatch(
                    f"{stored} was made by another config; go on with that one, or name another --run.dir:\n"
                    + "\n".join(f"  {name}: there {old!r}, now {new!r}" for name, old, new in differences)
                )
        else:
            # The config comes last: a directory without one is a new one, whatever a kill left in it.
            write_atomic(self.path / "env.json", json.dumps(environment(), indent=2) + "\n")
            write_atomic(stored, json.dumps(config, indent=2, allow_nan=False) + "\n")

    def keep(self, folder: Path | None) -> None:
        """Copies a folder into this one, unless it was before; None is none. To be called while this one is locked."""
        if not is_first() or folder is None or (self.path / folder.name).exists():
            return
        partial = self.path / f".{folder.name}.partial"
        if partial.exists():  # a kill left it, for no other process is here
            shutil.rmtree(partial)
        shutil.copytree(folder, partial)
        partial.rename(self.path / folder.name)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training here, until the end or until this process dies, however it does.

        Raises:
          RunInUse: another process does; the message names it.
        """
        with contextlib.ExitStack() as held:
            agreed(lambda: held.enter_context(self._lock()))
            yield

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.path / ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise RunInUse(
                    f"{self.path} is in use by {file.read()}; wait until it has ended, or name another --run.dir"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
            yield

    def truncate_lines(self, step: int) -> None:
        """Drops lines after `step`, and a line that a kill cut short: a restart writes them again."""
        if not is_first():
            return
        for path in (self.metrics, self.skipped):
            if path == self.metrics or path.exists():
                kept = [line for line in json_lines.read(path, ("step",)) if line["step"] <= step]
                write_atomic(path, json_lines.text_of(kept))

    def warn_of_lost_lines(self, step: int, log_every: int) -> None:
        """Says so if ``metrics.jsonl`` ends before `step`, at which there is a checkpoint: it was cut off."""
        if not is_first():
            return
        newest = max((line["step"] for line in json_lines.read(self.metrics) if line["kind"] == "train"), default=0)
        if newest < step - step % log_every:
            logger.warning(
                "%s ends at step %d, and the run goes on at step %d: what lies between was cut off, and is not in it",
                *(self.metrics, newest, step),
            )

    def evaluated(self, step: int) -> list[str]:
        """The splits whose evaluation at `step` has its line in ``metrics.jsonl``."""
        lines = json_lines.read(self.metrics)
        return [line["split"] for line in lines if line["kind"] == "eval" and line["step"] == step]

    def log(self, **line: Any) -> None:
        """Appends a line to ``metrics.jsonl``; it is on disk when this returns.

        Raises:
          ValueError: a value is NaN or infinite.
        """
        if is_first():
            json_lines.append(self.metrics, [line])

    def log_skipped(self, lines: Iterable[dict[str, Any]]) -> None:
        """Appends lines to ``skipped.jsonl``, as `log` does."""
        if is_first():
            json_lines.append(self.skipped, lines)


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
      ValueError: it is no JSON; names the file, line and column.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # of its bytes, too
        raise ValueError(f"{path} is not valid JSON, so it was damaged or cut off: {error}") from error


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
    with replacing(path) as file:
        file.write(text)


@contextlib.contextmanager
def replacing(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """A file that takes the place of `path` when it is on disk whole; after an error it is gone and `path` as it was.

    Args:
      path: of a regular file, or of none.
      newline: as for `open`.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:  # Ctrl-C, too
        partial.unlink(missing_ok=True)
        raise
