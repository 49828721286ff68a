"""The training run, top to bottom: data, model, state or its checkpoint, steps, evaluation, results.

A run that is cut off anywhere, by SIGKILL too, goes on with the same command and ends with the same metrics, bit for
bit: model, optimizer, random state, metric sums and data position are one checkpoint, and metrics.jsonl is cut back to
it. SIGTERM or Ctrl-C saves first and returns.
"""

import dataclasses
import json
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from tqdm import tqdm

from kunlun_jax import flops
from kunlun_jax.data.dataset import Dataset, dense_moments
from kunlun_jax.data.open import open_dataset
from kunlun_jax.data.pack import Counts
from kunlun_jax.data.pipeline import Loader, capacities, make_loader
from kunlun_jax.mfu import PEAK_FIELDS, peak, utilization
from kunlun_jax.serialization import to_json
from kunlun_jax.training.checkpoint import Checkpoints
from kunlun_jax.training.config import TrainConfig
from kunlun_jax.training.evaluate import Predictions, metrics_of, predict
from kunlun_jax.training.metrics import MetricSums
from kunlun_jax.training.plots import learning_curve
from kunlun_jax.training.run_directory import RunDirectory, read_metrics, write_atomic
from kunlun_jax.training.step import Trainer, TrainState


@dataclasses.dataclass(frozen=True)
class Run:
    """What a config makes before the first step: everything that training and evaluation share.

    Attributes:
      capacity: packed rows per batch of each event type and multi-valued feature.
      steps: steps of the whole run.
      parts: parameters and FLOPs of the model by part, at the mean history lengths of the training split.
    """

    config: TrainConfig
    dataset: Dataset
    capacity: dict[str, int]
    steps: int
    trainer: Trainer
    parts: list[flops.Part]

    def loader(self, split: str, *, epochs: int = 1, training: bool = False) -> Loader:
        """Batches of a split; only training may shuffle."""
        config = self.config.loader if training else dataclasses.replace(self.config.loader, shuffle="none")
        return make_loader(
            self.dataset, split, config, capacity=self.capacity, epochs=epochs, seed=self.config.run.seed
        )

    def batches(self, split: str) -> int:
        """Batches in one pass over a split."""
        return math.ceil(len(self.dataset.split(split)) / self.config.loader.batch_size)

    def predict(self, state: TrainState, split: str) -> Predictions:
        """Predictions for a split."""
        with self.loader(split) as loader:
            return predict(
                self.trainer, state, loader, total=self.batches(split), progress=self.config.run.progress, name=split
            )


def prepare(config: TrainConfig, dataset: Dataset | None = None) -> Run:
    """Opens the data and builds model and optimizers for `config`."""
    dataset = open_dataset(config.data) if dataset is None else dataset
    for split in ("train", *config.run.eval_splits):
        dataset.split(split)
    capacity = capacities(dataset, tuple(dataset.splits), config.loader, epochs=config.run.epochs, seed=config.run.seed)
    steps = config.run.epochs * math.ceil(len(dataset.split("train")) / config.loader.batch_size)
    steps = min(steps, config.run.max_steps or steps)
    model = config.model.build(
        dataset.schema,
        base_rate=dataset.p_train,
        dense_moments=dense_moments(dataset),
        rngs=nnx.Rngs(params=jax.random.key(config.run.seed)),
    )
    trainer = Trainer(model, config.optimizer, steps=steps, log_every=config.run.log_every, seed=config.run.seed)
    return Run(config, dataset, capacity, steps, trainer, model.parts(sample_lengths(dataset, config)))


def sample_lengths(dataset: Dataset, config: TrainConfig, rows: int = 4096) -> dict[str, Any]:
    """History lengths by event type of up to `rows` training rows, evenly spaced, cut as the loader cuts."""
    split = dataset.split("train")
    index = split.start + np.linspace(0, len(split) - 1, min(rows, len(split))).astype(np.int64)
    most = config.loader.max_events_by_type(dataset.schema)
    return {name: dataset.source.history_lengths(index, name).clip(max=most[name]) for name in most}


class Stop:
    """Remembers SIGTERM and SIGINT, for the loop to look at between steps."""

    def __init__(self):
        self.signal: str | None = None

    def __enter__(self) -> "Stop":
        self._old = {s: signal.signal(s, self._remember) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _) -> None:
        self.signal = signal.Signals(number).name


class MetricsLog:
    """Training lines, fetched from the device one line late, so that logging never waits for a step.

    Args:
      directory: where lines go.
      run: tells batch size, tasks and their training rates.
      start: steps done when this process began.
      mirror: called with each line as well (TensorBoard).
    """

    def __init__(self, directory: RunDirectory, run: Run, start: int, mirror: Callable[[dict[str, Any]], None] | None):
        self._run, self._batch_size, self._mirror = directory, run.config.loader.batch_size, mirror
        self._p_train, self._tasks = run.dataset.p_train, run.dataset.schema.tasks
        self._waiting: tuple[int, MetricSums, Counts] | None = None
        self._last_step, self._last_time = start, time.monotonic()
        self.newest: dict[str, Any] = {}

    def add(self, step: int, sums: MetricSums, counts: Counts) -> None:
        """Queues the line of `step` and writes the one before it."""
        self.flush()
        self._waiting = (step, sums, counts)

    def flush(self) -> None:
        """Writes the line that waits, if any."""
        if self._waiting is None:
            return
        step, sums, counts = self._waiting
        self._waiting = None
        values = jax.device_get(sums).metrics(self._p_train, self._tasks)
        now = time.monotonic()
        rate = (step - self._last_step) * self._batch_size / max(now - self._last_time, 1e-9)
        self._last_step, self._last_time = step, now
        self.write(
            kind="train",
            step=step,
            examples=step * self._batch_size,
            **values,
            **shown(counts),
            examples_per_second=round(rate, 1),
        )

    def restart_clock(self) -> None:
        """Leaves the time since the last line out of the next line's examples per second: it was no training."""
        self._last_time = time.monotonic()

    def write(self, **line: Any) -> None:
        """Writes a line now."""
        self._run.log(**line)
        self.newest = line
        if self._mirror is not None:
            self._mirror(line)


def train(config: TrainConfig, path: Path, *, dataset: Dataset | None = None) -> dict[str, Any]:
    """Trains as `config` says, in the run directory `path`, from wherever an earlier run there stopped.

    Returns:
      Contents of ``result.json``: metrics by split, steps, sizes; or ``{"stopped": step}`` after a signal.

    Raises:
      ConfigMismatch: `path` holds a run with another config or other data.
      ValueError: bad data or config.
    """
    return train_run(prepare(config, dataset), path)


def train_run(run: Run, path: Path) -> dict[str, Any]:
    """`train` for what `prepare` made."""
    config = run.config
    directory = RunDirectory(
        path,
        {
            "config": to_json(config),
            "data": {"name": run.dataset.schema.name, "fingerprint": run.dataset.fingerprint},
            "p_train": to_json(run.dataset.p_train),
            "capacity": run.capacity,
            "steps": run.steps,
        },
    )
    checkpoints = Checkpoints(directory.checkpoints)
    loader = run.loader("train", epochs=config.run.epochs, training=True)
    mirror = tensorboard_writer(path) if config.run.tensorboard else None
    start = checkpoints.latest() or 0
    counts = Counts()
    if start:
        state, position = checkpoints.restore(start, run.trainer.abstract_state())
        loader.set_state(position["loader"])
        counts = Counts(**position["counts"])
    else:
        state = run.trainer.init()
    directory.truncate_metrics(start)
    log = MetricsLog(directory, run, start, mirror)

    def save(step: int) -> None:
        log.flush()
        with jax.transfer_guard("allow"):
            checkpoints.save(step, state, {"loader": loader.get_state(), "counts": dataclasses.asdict(counts)})

    def evaluate(step: int, splits: tuple[str, ...]) -> None:
        log.flush()
        for split in splits:
            began = time.monotonic()
            predictions = run.predict(state, split)
            values = metrics_of(run.dataset, predictions)
            floor = run.dataset.floor(split)
            log.write(
                kind="eval",
                split=split,
                step=step,
                examples=step * config.loader.batch_size,
                **values,
                **({} if floor is None else {"floor": floor}),
                **shown(predictions.counts),
                seconds=round(time.monotonic() - began, 2),
            )
        log.restart_clock()

    step = start
    bar = tqdm(
        total=run.steps, initial=start, desc="train", unit="step", disable=not config.run.progress, smoothing=0.05
    )
    with loader, bar, Stop() as stop, jax.transfer_guard("disallow"):
        while step < run.steps and stop.signal is None:
            if config.run.fresh_tables and step and step % run.batches("train") == 0:
                with jax.transfer_guard("allow"):
                    state = run.trainer.renew_tables(state)
            batch, new = next(loader)
            counts += new
            state, sums = run.trainer.step(state, jax.device_put(batch))
            step += 1
            bar.update()
            if step % config.run.log_every == 0 or step == run.steps:
                log.add(step, sums, counts)
                counts = Counts()
                bar.set_postfix_str(progress_text(log.newest), refresh=False)
                run.trainer.assert_compiled_once()
            if step == run.steps:
                log.flush()
                with jax.transfer_guard("allow"):
                    log.write(kind="peak", step=step, **dataclasses.asdict(peak(config.model.compute_dtype)))
                evaluate(step, config.run.eval_splits)
            elif config.run.eval_every and step % config.run.eval_every == 0:
                evaluate(step, config.run.eval_splits[:1])
            if step % config.run.checkpoint_every == 0 or step == run.steps:
                save(step)
        if step < run.steps:
            save(step)
    checkpoints.close()
    if step < run.steps:
        return {"stopped": step, "signal": stop.signal, "steps": run.steps}
    return finish(run, directory)


def finish(run: Run, directory: RunDirectory) -> dict[str, Any]:
    """Writes ``result.json`` and ``learning_curve.png`` from ``metrics.jsonl`` and returns the result."""
    lines = read_metrics(directory.metrics)
    evals = {line["split"]: line for line in lines if line["kind"] == "eval" and line["step"] == run.steps}
    rates = [(line["step"], line["examples_per_second"]) for line in lines if line["kind"] == "train"]
    limit = next((line for line in lines if line["kind"] == "peak"), None)
    if limit is None:
        raise ValueError(f"{directory.metrics} has no line of kind 'peak': an older kunlun_jax wrote it; use that one")
    training_flops = flops.TRAINING_FACTOR * flops.total_flops(run.parts)
    used = utilization(training_flops, rates, limit["flops_per_second"])
    environment = json.loads((directory.path / "env.json").read_text())
    result = {
        "splits": evals,
        "steps": run.steps,
        "parameters": flops.total_parameters(run.parts),
        "flops_per_example": flops.total_flops(run.parts),
        "training_flops_per_example": training_flops,
        "examples_per_second": used["examples_per_second"],
        "mfu": used["mfu"],
        "mfu_of": {
            "steps": used["steps"],
            "peak": {name: limit[name] for name in PEAK_FIELDS},
            "commit": environment["commit"],
        },
    }
    write_atomic(directory.path / "result.json", json.dumps(result, indent=2) + "\n")
    floor = run.dataset.floor(run.config.run.eval_splits[0])
    title = f"{run.dataset.schema.name}: {flops.total_parameters(run.parts):,} parameters"
    learning_curve(directory.metrics, directory.path / "learning_curve.png", floor, title)
    return result


def shown(counts: Counts) -> dict[str, int]:
    """What was cut, filled or unknown, for a metrics line; of ids beyond a vocabulary, the features that had any."""
    flat = counts.flat()
    del flat["examples"]  # a line's own field counts those of the whole run
    return {name: n for name, n in flat.items() if n or not name.startswith("beyond_vocabulary/")}


def progress_text(line: dict[str, Any]) -> str:
    """The newest training line for the progress bar."""
    ne = [f"{name} {value:.4f}" for name, value in line.items() if name.split("/")[-1] == "ne"]
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
