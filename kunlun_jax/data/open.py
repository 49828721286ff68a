"""One way to open any data set, from flags, and the table of the data sets that there are."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from kunlun_jax.data.dataset import Dataset, DatasetConfig
from kunlun_jax.data.parquet import source as parquet
from kunlun_jax.data.parquet.source import ParquetConfig
from kunlun_jax.data.sets import kuairand, movielens, synthetic
from kunlun_jax.data.sets.kuairand import KuaiRandConfig
from kunlun_jax.data.sets.movielens import MovieLensConfig
from kunlun_jax.data.sets.synthetic import SyntheticConfig


@dataclasses.dataclass(frozen=True)
class Kind:
    """A data set that `open_dataset` knows.

    Attributes:
      name: for messages.
      config: class of its options.
      open: ``open(root, cache, options)`` -> `Dataset`; `root` is None only for one without files.
      signs: patterns of files of which a folder that holds it has at least one; none for one without files.
      public: whether the environment variable KUNLUN_DATA may stand in for its folder.
    """

    name: str
    config: type[DatasetConfig]
    open: Callable[[Any, Path | None, Any], Dataset]
    signs: tuple[str, ...] = ()
    public: bool = False


KINDS = (
    Kind("synthetic", SyntheticConfig, lambda root, cache, options: synthetic.open_dataset(options)),
    Kind("parquet", ParquetConfig, lambda root, cache, options: parquet.open_dataset(root, cache), ("schema.json",)),
    Kind(
        "kuairand",
        KuaiRandConfig,
        kuairand.open_dataset,
        ("log_standard_*_pure.csv", "data/log_standard_*_pure.csv", "KuaiRand-Pure/data/log_standard_*"),
        public=True,
    ),
    Kind("movielens", MovieLensConfig, movielens.open_dataset, ("ratings.dat", "ml-1m/ratings.dat"), public=True),
)
"""A new data set is a line here and a module with its config and `open_dataset`."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which data set, and where it is."""

    root: Path | None = None
    """Folder of the data set. Where a preset is for the synthetic world, it is opened as what lies in it."""
    cache: Path | None = None
    """Folder for prepared data; default KUNLUN_CACHE, else ~/.cache/kunlun_jax."""
    options: Annotated[DatasetConfig, tyro.conf.arg(name="")] = SyntheticConfig()
    """Options of the data set, whose class says which it is; as flags they stand beside root and cache."""


def kind_of(options: DatasetConfig) -> Kind:
    """The data set whose options these are; TypeError for none that `KINDS` has."""
    for kind in KINDS:
        if type(options) is kind.config:
            return kind
    known = [kind.config.__name__ for kind in KINDS]
    raise TypeError(f"data.options is a {type(options).__name__}; it must be one of {known}")


def detect(root: Path) -> Kind:
    """What lies in a folder.

    Raises:
      ValueError: nothing that is known, or more than one data set.
    """
    if not root.is_dir():
        raise ValueError(f"data.root is {str(root)!r}; it must be an existing folder")
    found = [kind for kind in KINDS if any(any(root.glob(sign)) for sign in kind.signs)]
    if len(found) != 1:
        raise ValueError(
            f"data.root {str(root)!r} holds {[kind.name for kind in found] or 'no data set that is known'}; "
            "name a folder that holds one, or take a preset for the one that is meant"
        )
    return found[0]


def resolve(config: DataConfig) -> DataConfig:
    """The config with the options of what lies in `root`, where those that stand there are of a data set without files.

    Raises:
      ValueError: `root` is no folder, or holds no data set that is known, or more than one.
    """
    if config.root is None or kind_of(config.options).signs:
        return config
    return dataclasses.replace(config, options=detect(config.root).config())


def open_dataset(config: DataConfig) -> Dataset:
    """Opens, and where needed first prepares, the data set that `config` names.

    Raises:
      ValueError: `root` is missing, unknown or holds bad data; the message names file, field and value.
    """
    config = resolve(config)
    kind, root = kind_of(config.options), config.root
    if root is None and kind.public and os.environ.get("KUNLUN_DATA"):
        root = Path(os.environ["KUNLUN_DATA"])
    if root is None and kind.signs:
        raise ValueError(f"data.root is not set; for {kind.name} say --data.root FOLDER")
    return kind.open(root, config.cache, config.options)
