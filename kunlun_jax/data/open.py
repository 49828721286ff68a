"""One way to open any data set, from flags."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import tyro

from kunlun_jax.data.dataset import Dataset, DatasetConfig
from kunlun_jax.data.parquet.source import ParquetConfig
from kunlun_jax.data.sets.kuairand import KuaiRandConfig
from kunlun_jax.data.sets.movielens import MovieLensConfig
from kunlun_jax.data.sets.synthetic import SyntheticConfig

SETS = (SyntheticConfig, ParquetConfig, KuaiRandConfig, MovieLensConfig)
"""Data sets recognized by the files in a folder, their `signs`. Others are opened only through their config."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which data set, and where it is."""

    root: Path | None = None
    """Folder of the data set. If the preset is for the synthetic world, the folder's contents decide what it is."""
    cache: Path | None = None
    """Folder for prepared data; default KUNLUN_CACHE, else ~/.cache/kunlun_jax."""
    options: Annotated[DatasetConfig, tyro.conf.arg(name="")] = SyntheticConfig()
    """Options of the data set; their class says which one it is. As flags they are named like root and cache."""


def detect(root: Path) -> type[DatasetConfig]:
    """Which data set a folder holds, as the class of its options.

    Raises:
      ValueError: no known data set, or more than one.
    """
    if not root.is_dir():
        raise ValueError(f"data.root is {str(root)!r}; it must be an existing folder")
    found = [kind for kind in SETS if any(any(root.glob(sign)) for sign in kind.signs)]
    if len(found) != 1:
        raise ValueError(
            f"data.root {str(root)!r} holds {[kind.__name__ for kind in found] or 'no known data set'}; "
            "name a folder that holds one, or use the preset of the data set you mean"
        )
    return found[0]


def resolve(config: DataConfig) -> DataConfig:
    """The config with the options of the data set in `root`, if its own options are those of a data set without files.

    Raises:
      ValueError: `root` is not a folder, or holds no known data set, or more than one.
    """
    if config.root is None or config.options.signs:
        return config
    return dataclasses.replace(config, options=detect(config.root)())


def open_dataset(config: DataConfig) -> Dataset:
    """Opens, and if needed first prepares, the data set that `config` names.

    Raises:
      ValueError: `root` is missing, unknown or holds bad data; the message names file, field and value.
    """
    config = resolve(config)
    options, root = config.options, config.root
    if root is None and options.public and os.environ.get("KUNLUN_DATA"):
        root = Path(os.environ["KUNLUN_DATA"])
    if root is None and options.signs:
        raise ValueError(
            f"data.root is not set; {type(options).__name__} is for a data set with files: --data.root FOLDER"
        )
    return options.open(root, config.cache)
