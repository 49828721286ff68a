"""`prepare`: builds from a config everything needed before the first step, for training and evaluation alike."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from flax import nnx

from kunlun_jax import flops
from kunlun_jax.data.dataset import Dataset, dense_moments
from kunlun_jax.data.open import open_dataset
from kunlun_jax.data.pipeline import Loader, capacities, make_loader
from kunlun_jax.executed import NotCounted
from kunlun_jax.parallel import make_mesh
from kunlun_jax.processes import is_first
from kunlun_jax.training.config import TrainConfig
from kunlun_jax.training.evaluate import Predictions, predict
from kunlun_jax.training.step import Trainer, TrainState
from kunlun_jax.training.stop import Stop
from kunlun_jax.training.work import work_of_step

EVALUATION_SEED = 0
"""Of the order that splits are evaluated in, if the loader shuffles: runs of every seed have the same batches."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything built from a config before the first step, for training and evaluation alike.

    Attributes:
      capacity: packed rows, per training batch and device, of each event type and multi-valued feature.
      evaluation_capacity: the same of the batches that splits are evaluated in, of all splits.
      steps: steps of the whole run.
      parts: parameters and FLOPs of the model by part, at the mean history lengths of the training split.
      lengths: history lengths by event type of some training rows, as the loader cuts them.
    """

    config: TrainConfig
    dataset: Dataset
    capacity: dict[str, int]
    evaluation_capacity: dict[str, int]
    steps: int
    trainer: Trainer
    parts: list[flops.Part]
    lengths: dict[str, np.ndarray]

    def loader(self, split: str, *, epochs: int = 1, training: bool = False) -> Loader:
        """Batches of a split, for evaluation those of `EVALUATION_SEED`."""
        return make_loader(
            self.dataset,
            split,
            self.config.loader,
            capacity=self.capacity if training else self.evaluation_capacity,
            epochs=epochs,
            seed=self.config.run.seed if training else EVALUATION_SEED,
            share_count=self.config.mesh.devices,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def batches(self, split: str) -> int:
        """Batches in one pass over a split."""
        return math.ceil(len(self.dataset.split(split)) / self.config.loader.batch_size)

    def executed(self) -> dict[str, float | str | None]:
        """What a training step executes and moves at the histories of `lengths`, or why it is not counted.

        Known once the trainer has compiled its step.
        """
        batch_size = self.config.loader.batch_size
        try:
            work = work_of_step(self.trainer, self.capacity, batch_size, self.lengths)
        except NotCounted as error:
            return {"executed_flops_per_example": None, "moved_bytes_per_step": None, "not_counted": str(error)}
        return {"executed_flops_per_example": work.flops / batch_size, "moved_bytes_per_step": work.bytes}

    def predict(self, state: TrainState, split: str) -> Predictions:
        """Predictions for a split."""
        predictions = self.predict_until(None, state, split)
        assert predictions is not None
        return predictions

    def predict_until(self, stop: Stop | None, state: TrainState, split: str) -> Predictions | None:
        """`predict`; None if a signal comes meanwhile."""
        total, progress = self.batches(split), self.config.run.progress
        with self.loader(split) as loader:
            return predict(self.trainer, state, loader, total=total, progress=progress, name=split, stop=stop)


def prepare(config: TrainConfig, dataset: Dataset | None = None) -> Run:
    """Opens the data and builds model and optimizers for `config`."""
    dataset = open_dataset(config.data) if dataset is None else dataset
    for split in ("train", *config.run.eval_splits):
        dataset.split(split)
    mesh = make_mesh(config.mesh)
    if not is_first():
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, progress=False))
    devices = config.mesh.devices
    capacity = capacities(
        dataset, ["train"], config.loader, epochs=config.run.epochs, seed=config.run.seed, share_count=devices
    )
    evaluation_capacity = capacities(
        dataset, tuple(dataset.splits), config.loader, seed=EVALUATION_SEED, share_count=devices
    )
    steps = config.run.epochs * math.ceil(len(dataset.split("train")) / config.loader.batch_size)
    steps = min(steps, config.run.max_steps or steps)
    model = config.model.build(
        dataset.schema,
        base_rate=dataset.p_train,
        dense_moments=dense_moments(dataset),
        rngs=nnx.Rngs(params=jax.random.key(config.run.seed)),
    )
    trainer = Trainer(
        model, config.optimizer, steps=steps, log_every=config.run.log_every, seed=config.run.seed, mesh=mesh
    )
    lengths = sample_lengths(dataset, config)
    return Run(config, dataset, capacity, evaluation_capacity, steps, trainer, model.parts(lengths), lengths)


def sample_lengths(dataset: Dataset, config: TrainConfig, rows: int = 4096) -> dict[str, Any]:
    """History lengths by event type of up to `rows` training rows, evenly spaced, cut as the loader cuts."""
    split = dataset.split("train")
    index = split.start + np.linspace(0, len(split) - 1, min(rows, len(split))).astype(np.int64)
    most = config.loader.max_events_by_type(dataset.schema)
    return {name: dataset.source.history_lengths(index, name).clip(max=most[name]) for name in most}
