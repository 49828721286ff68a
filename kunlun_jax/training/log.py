"""Lines of ``metrics.jsonl`` while a run trains, and the same for the progress bar and for TensorBoard."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from kunlun_jax.data.pack import Counts
from kunlun_jax.data.pipeline import Loader
from kunlun_jax.processes import is_first
from kunlun_jax.training.metrics import ne_names
from kunlun_jax.training.run import Run
from kunlun_jax.training.run_directory import RunDirectory
from kunlun_jax.training.skipped import Skipped, lines_of, refuse_streak, told
from kunlun_jax.training.step import Progress

logger = logging.getLogger(__name__)


class MetricsLog:
    """Training lines, fetched from the device one line late, so that logging never waits for a step.

    Args:
      directory: where lines go.
      run: tells batch size, tasks and their training rates.
      loader: of the training batches, which tells what was in those of skipped steps.
      start: steps done when this process began.
      mirror: called with each line as well (TensorBoard).
    """

    def __init__(
        self,
        directory: RunDirectory,
        run: Run,
        loader: Loader,
        start: int,
        mirror: Callable[[dict[str, Any]], None] | None,
    ):
        self._directory, self._run, self._loader, self._mirror = directory, run, loader, mirror
        self._batch_size = run.config.loader.batch_size
        self._waiting: tuple[int, Progress, Callable[[], Counts]] | None = None
        self._last_step, self._last_time = start, time.monotonic()
        self.newest: dict[str, Any] = {}

    def add(self, step: int, progress: Progress, counts: Callable[[], Counts]) -> None:
        """Queues the line of `step` and writes the one before it; `Diverged` as for `flush`.

        `counts` is called when the line is written.
        """
        self.flush()
        self._waiting = (step, progress, counts)

    def flush(self) -> None:
        """Writes the line that waits, if any, and before it what is known of the skipped steps that it counts.

        Raises:
          Diverged: the run skips one step after the other.
        """
        if self._waiting is None:
            return
        step, progress, counts = self._waiting
        self._waiting = None
        progress = jax.device_get(progress)
        dataset = self._run.dataset
        values = progress.sums.metrics(dataset.p_train, dataset.schema.tasks)
        self._tell_skipped(step, progress.skipped)
        now = time.monotonic()
        rate = (step - self._last_step) * self._batch_size / max(now - self._last_time, 1e-9)
        self._last_step, self._last_time = step, now
        self.write(
            kind="train",
            step=step,
            examples=step * self._batch_size,
            **values,
            skipped_steps=int(progress.skipped.count),
            **shown(counts()),
            examples_per_second=round(rate, 1),
        )
        refuse_streak(step, progress.skipped.streak, self._run.config.run.max_skipped_streak)

    def _tell_skipped(self, step: int, skipped: Skipped) -> None:
        if skipped.count and is_first():
            self._directory.log_skipped(lines_of(step, skipped, self._run.dataset, self._loader.rows))
            logger.warning("%s; their examples are in %s", told(step, skipped), self._directory.skipped)

    def restart_clock(self) -> None:
        """Leaves the time since the last line out of the next line's examples per second: it was no training."""
        self._last_time = time.monotonic()

    def write(self, **line: Any) -> None:
        """Writes a line now."""
        self._directory.log(**line)
        self.newest = line
        if self._mirror is not None:
            self._mirror(line)


def shown(counts: Counts) -> dict[str, int]:
    """What was cut, filled or unknown, for a metrics line.

    Of ids beyond a vocabulary, the features that had any; the events of the fullest share where there are shares.
    """
    flat = counts.flat()
    del flat["examples"]  # a line's own field counts those of the whole run
    return {name: n for name, n in flat.items() if n or not name.startswith(("beyond_vocabulary/", "events_of_"))}


def progress_text(line: dict[str, Any]) -> str:
    """The newest training line for the progress bar."""
    ne = [f"{name} {line[name]:.4f}" for name in ne_names(line) if line[name] is not None]
    return ", ".join(
        [*ne, *([f"{line['examples_per_second']:,.0f} examples/s"] if "examples_per_second" in line else [])]
    )


def tensorboard_writer(path: Path):
    """A function that writes a metrics line to TensorBoard files in `path`.

    Raises:
      ModuleNotFoundError: the extra "tensorboard" is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError:
        raise ModuleNotFoundError('run.tensorboard needs tensorboardX: pip install "kunlun_jax[tensorboard]"') from None
    writer = SummaryWriter(str(path / "tensorboard"))

    def write(line: dict[str, Any]) -> None:
        prefix = line.get("split", line["kind"])
        for name, value in line.items():
            if isinstance(value, (int, float)) and name not in ("step",):
                writer.add_scalar(f"{prefix}/{name}", value, line["step"])
        writer.flush()

    return write
