"""`TrainConfig`: the tree of frozen dataclasses that determines a run. Presets are files in ``experiments/configs``."""

import dataclasses
from pathlib import Path
from typing import ClassVar

from kunlun_jax.data.open import DataConfig
from kunlun_jax.data.pipeline import LoaderConfig
from kunlun_jax.models.base import ModelConfig
from kunlun_jax.parallel import MeshConfig
from kunlun_jax.ranges import at_least, check, within
from kunlun_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Length and bookkeeping of a run."""

    dir: Path | None = None
    """Run directory; default runs/PRESET-DATASET-seedSEED. The same command continues a run that was cut off."""
    seed: int = 0
    """Seed of parameters, dropout and, if the loader shuffles, the order of rows."""
    epochs: int = 1
    """Passes over the training split (r: one)."""
    fresh_tables: bool = False
    """Whether each pass after the first starts with new tables, as in MEDA (arXiv 2305.19531, O): the dense parameters
    learn from several passes, while no embedding sees the same row twice."""
    max_steps: int = 0
    """Stops after this many steps; 0 runs all epochs."""
    log_every: int = 20
    """Steps between training lines in metrics.jsonl."""
    eval_every: int = 0
    """Steps between evaluations on the validation split; 0 evaluates at the end only."""
    eval_splits: tuple[str, ...] = ("valid", "test")
    """Splits to evaluate at the end; eval_every uses the first."""
    checkpoint_every: int = 200
    """Steps between checkpoints; one is also written at the end and on SIGTERM."""
    max_skipped_streak: int = 20
    """Skipped steps in a row after which the run ends with an error. A step whose loss or gradient is not finite
    changes nothing and is skipped; this is checked where a training line is written or a checkpoint is due."""
    debug_nans: bool = False
    """End the run at the first step to be skipped, with the name of the layer that it comes from; slower, since the run
    then waits for each step."""
    tensorboard: bool = False
    """Also write TensorBoard files to the run directory; needs the extra "tensorboard"."""
    progress: bool = True
    """Show a progress bar."""

    RANGES: ClassVar = {
        "seed": within(0, 2**31 - 1),
        "epochs": at_least(1),
        "max_steps": at_least(0),
        "log_every": at_least(1),
        "eval_every": at_least(0),
        "checkpoint_every": at_least(1),
        "max_skipped_streak": at_least(1),
    }

    def __post_init__(self):
        check(self, "run")
        if not self.eval_splits:
            raise ValueError("run.eval_splits is empty; name at least one split")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run."""

    data: DataConfig = DataConfig()
    """The data set."""
    loader: LoaderConfig = dataclasses.field(default_factory=LoaderConfig)
    """From rows to batches."""
    model: ModelConfig
    """The model; the class of its config says which one. Marks on its flags: P the paper's own words, M Meta's code,
    R two or more readers of the paper, r one reader, O our own choice."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Learning rates."""
    mesh: MeshConfig = MeshConfig()
    """Devices that share the run."""
    run: RunConfig = RunConfig()
    """Length and bookkeeping."""
