"""Kunlun (arXiv 2602.10016) in JAX: a click-through-rate model over context features and event histories.

`train`, `open_dataset`, `TrainConfig` and the configs that it is made of, and every model of `kunlun_jax.models`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kunlun_jax.data.open import DataConfig, open_dataset
    from kunlun_jax.data.pipeline import LoaderConfig
    from kunlun_jax.training.config import RunConfig, TrainConfig
    from kunlun_jax.training.loop import train
    from kunlun_jax.training.optimizer import OptimizerConfig
    from kunlun_jax.training.run import prepare

__version__ = "0.1.0"
__all__ = [
    "DataConfig",
    "LoaderConfig",
    "OptimizerConfig",
    "RunConfig",
    "TrainConfig",
    "open_dataset",
    "prepare",
    "train",
]
_PLACES = {
    "DataConfig": "data.open",
    "LoaderConfig": "data.pipeline",
    "OptimizerConfig": "training.optimizer",
    "RunConfig": "training.config",
    "TrainConfig": "training.config",
    "open_dataset": "data.open",
    "prepare": "training.run",
    "train": "training.loop",
}


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: a process that reads data alone waits for no model.
    if name in _PLACES:
        return getattr(importlib.import_module(f"kunlun_jax.{_PLACES[name]}"), name)
    if name[:1].isupper():
        return getattr(importlib.import_module("kunlun_jax.models"), name)
    raise AttributeError(f"module 'kunlun_jax' has no attribute {name!r}; it has {__all__} and the models")
