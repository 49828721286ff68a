"""A run so small that it compiles in seconds: as flags, and as the config that they make."""

from pathlib import Path

import tyro

from kunlun_jax.models.config import KunlunConfig
from kunlun_jax.training.config import TrainConfig
from kunlun_jax.training.optimizer import OptimizerConfig

BASE = TrainConfig(
    model=KunlunConfig(), optimizer=OptimizerConfig(learning_rate=4e-3, decay="linear", table_learning_rate=0.1)
)
DATA = (
    *("--data.train-rows", "608", "--data.valid-rows", "70", "--data.test-rows", "70"),
    *("--data.users", "60", "--data.items-per-brand", "2", "--data.brands-per-topic", "2"),
    *("--data.impressions-per-day", "0.03"),
)
"""A world of 608 rows to train on, as flags."""
RUN = (
    *("--loader.batch-size", "32", "--loader.max-events", "16"),
    *("--run.log-every", "3", "--run.checkpoint-every", "4", "--run.no-progress"),
)
"""Of that world 19 steps, logged every 3 and saved every 4."""
FLAGS = (
    *(*DATA, *RUN),
    *("--model.dim", "8", "--model.layers", "1", "--model.embedding-dim", "4", "--model.summary-tokens", "2"),
    *("--model.skip-events", "impression", "purchase", "--model.event-input", "mlp", "--model.dropout", "0.2"),
    *("--model.event.dim", "8", "--model.event.heads", "1", "--model.event.tokens", "2", "--model.event.seeds", "4"),
    *("--model.event.kron-rank", "1", "--model.experts", "1", "--model.fm-tokens", "2", "--model.linear-tokens", "2"),
    *("--model.fm-rank", "2", "--model.fm-hidden", "8", "--model.head-hidden", "8"),
)
"""Those and a Kunlun; dropout needs the random state."""


def tiny_config(*flags: str, directory: Path | None = None) -> TrainConfig:
    """The config of `FLAGS`, of more flags after them, and of a run directory."""
    where = () if directory is None else ("--run.dir", str(directory))
    return tyro.cli(TrainConfig, default=BASE, args=[*FLAGS, *flags, *where])
