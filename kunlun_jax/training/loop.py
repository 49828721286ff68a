"""The training run, top to bottom: data, model, state or its checkpoint, steps, evaluation, results.

A run that is cut off anywhere, by SIGKILL too, goes on with the same command and ends with the same metrics, bit for
bit: model, optimizer, random state, metric sums and data position are one checkpoint, and metrics.jsonl is cut back to
it. SIGTERM or Ctrl-C saves first and returns.

Several processes run the same lines, each on its own shares of the batches; process 0 alone writes the run directory,
and what it finds there it tells the others (`kunlun_jax.processes`).
"""

import contextlib
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax

from kunlun_jax import flops
from kunlun_jax.data.dataset import Dataset
from kunlun_jax.data.pack import Counts
from kunlun_jax.mfu import PEAK_FIELDS, peak, utilization
from kunlun_jax.nn.table_rows import dealt
from kunlun_jax.processes import agreed, is_first
from kunlun_jax.progress import ProgressBar
from kunlun_jax.serialization import to_json
from kunlun_jax.training import json_lines
from kunlun_jax.training.checkpoint import Checkpoints
from kunlun_jax.training.config import TrainConfig
from kunlun_jax.training.evaluate import NotFinite, metrics_of
from kunlun_jax.training.locate import where_not_finite
from kunlun_jax.training.log import MetricsLog, progress_text, shown, tensorboard_writer
from kunlun_jax.training.plots import learning_curve
from kunlun_jax.training.run import Run, prepare
from kunlun_jax.training.run_directory import RunDirectory, write_atomic
from kunlun_jax.training.skipped import Diverged, refuse_streak
from kunlun_jax.training.stop import Stop
from kunlun_jax.training.totals import of_all, own_part


def train(config: TrainConfig, path: Path, *, dataset: Dataset | None = None) -> dict[str, Any]:
    """Trains as `config` says, in the run directory `path`, from wherever an earlier run there stopped.

    Returns:
      Contents of ``result.json``: metrics by split, steps, sizes; or ``{"stopped": step}`` after a signal.

    Raises:
      ConfigMismatch: `path` holds a run with another config or other data.
      Diverged: step after step had a loss or a gradient that is not finite.
      NotFinite: an evaluation had a logit that is not.
      ValueError: bad data or config.
    """
    return train_run(prepare(config, dataset), path)


def train_run(run: Run, path: Path) -> dict[str, Any]:
    """`train` for what `prepare` made."""
    directory = RunDirectory(
        path,
        {
            "config": to_json(run.config),
            "data": {"name": run.dataset.schema.name, "fingerprint": run.dataset.fingerprint},
            "p_train": to_json(run.dataset.p_train),
            "capacity": run.capacity,
            "steps": run.steps,
            # Only where there are any, so that runs without go on; one from before rows were dealt is refused.
            **({"dealt_tables": dealt(run.dataset.schema)} if dealt(run.dataset.schema) else {}),
        },
    )
    # Closed whatever happens: a run that ends with an error is to leave what it has begun to save.
    with directory.locked(), contextlib.closing(Checkpoints(directory.checkpoints)) as checkpoints:
        directory.keep(run.dataset.learned)
        return _train(run, directory, checkpoints)


def _train(run: Run, directory: RunDirectory, checkpoints: Checkpoints) -> dict[str, Any]:
    config = run.config
    loader = run.loader("train", epochs=config.run.epochs, training=True)
    mirror = tensorboard_writer(directory.path) if config.run.tensorboard and is_first() else None
    start = agreed(lambda: checkpoints.latest() or 0)
    counts = Counts()
    if start:
        state, position = checkpoints.restore(start, run.trainer.abstract_state())
        loader.set_state(position["loader"])
        counts = own_part(Counts(**position["counts"]))
    else:
        state = run.trainer.init()
    directory.truncate_lines(start)
    directory.warn_of_lost_lines(start, config.run.log_every)
    evaluated = {(start, split) for split in agreed(lambda: directory.evaluated(start))}
    log = MetricsLog(directory, run, loader, start, mirror)

    def streak() -> int:
        return int(jax.device_get(state.skipped.streak))

    def save(step: int) -> None:
        log.flush()
        refuse_streak(step, streak(), config.run.max_skipped_streak)
        with jax.transfer_guard("allow"):
            total = of_all(counts, run.trainer.mesh)()
            checkpoints.save(step, state, {"loader": loader.get_state(), "counts": dataclasses.asdict(total)})

    def owed(step: int) -> list[str]:
        """The splits that are to be evaluated at `step` and have no line in metrics.jsonl."""
        splits = config.run.eval_splits
        if step < run.steps:
            splits = splits[:1] if config.run.eval_every and step and step % config.run.eval_every == 0 else ()
        return [split for split in splits if (step, split) not in evaluated]

    def evaluate(step: int, stop: Stop) -> None:
        refused: NotFinite | None = None
        for split in owed(step):
            log.flush()
            began = time.monotonic()
            predictions = run.predict_until(stop, state, split)
            if predictions is None:
                return
            floor = run.dataset.floor(split)
            try:
                metrics = metrics_of(run.dataset, predictions)
            except NotFinite as error:
                refused = refused or error
                continue
            log.write(
                kind="eval",
                split=split,
                step=step,
                examples=step * config.loader.batch_size,
                **metrics,
                **({} if floor is None else {"floor": floor}),
                **shown(predictions.counts),
                seconds=round(time.monotonic() - began, 2),
            )
            evaluated.add((step, split))
            log.restart_clock()
        if refused is not None:  # after the other splits and a checkpoint, so that nothing else is lost
            save(step)
            raise refused

    step, executed = start, dict[str, Any]()
    bar = ProgressBar(
        total=run.steps, initial=start, desc="train", unit="step", disable=not config.run.progress, smoothing=0.05
    )
    with loader, bar, Stop() as stop, jax.transfer_guard("disallow"):
        evaluate(start, stop)  # what an earlier process was stopped in
        while step < run.steps and not stop.reached():
            if config.run.fresh_tables and step and step % run.batches("train") == 0:
                with jax.transfer_guard("allow"):
                    state = run.trainer.renew_tables(state)
            batch, new = next(loader)
            counts += new
            batch = run.trainer.put(batch)
            state, progress = run.trainer.step(state, batch)
            step += 1
            if config.run.debug_nans and streak():
                raise Diverged(f"step {step}: {where_not_finite(run.trainer, state, batch)}")
            if step == start + 1 and is_first():
                # The step is traced by now: what goes wrong in counting does so at the start of a run, not at its end.
                with jax.transfer_guard("allow"):
                    executed = run.executed()
            bar.update()
            if step % config.run.log_every == 0 or step == run.steps:
                log.add(step, progress, of_all(counts, run.trainer.mesh))
                counts = Counts()
                bar.set_postfix_str(progress_text(log.newest), refresh=False)
            if step == run.steps:
                log.flush()
                if is_first():  # alone, for a measurement takes seconds of the machine
                    with jax.transfer_guard("allow"):
                        limit = dataclasses.asdict(peak(config.model.compute_dtype, config.mesh.devices))
                        log.write(kind="peak", step=step, **limit, **executed)
            # Before the evaluation, so that a signal need not wait for its end.
            # A streak of skipped steps may not end, and of the checkpoints only the newest are kept.
            if step == run.steps or (step % config.run.checkpoint_every == 0 and not streak()):
                save(step)
            evaluate(step, stop)
        save(step)
    checkpoints.wait()
    if step < run.steps or owed(step):
        return {"stopped": step, "signal": stop.signal, "steps": run.steps}
    return agreed(lambda: finish(run, directory))


def finish(run: Run, directory: RunDirectory) -> dict[str, Any]:
    """Writes ``result.json`` and ``learning_curve.png`` from ``metrics.jsonl`` and returns the result."""
    lines = json_lines.read(directory.metrics)
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
        "executed_flops_per_example": limit.get("executed_flops_per_example"),
        "moved_bytes_per_step": limit.get("moved_bytes_per_step"),
        "examples_per_second": used["examples_per_second"],
        "mfu": used["mfu"],
        "mfu_of": {
            "steps": used["steps"],
            "peak": {name: limit[name] for name in PEAK_FIELDS},
            "commit": environment["commit"],
        },
    }
    write_atomic(directory.path / "result.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    floor = run.dataset.floor(run.config.run.eval_splits[0])
    title = f"{run.dataset.schema.name}: {flops.total_parameters(run.parts):,} parameters"
    learning_curve(directory.metrics, directory.path / "learning_curve.png", floor, title)
    return result
