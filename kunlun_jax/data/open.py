"""One way to open any data set, from flags."""

import dataclasses
import os
from pathlib import Path
from typing import Literal

from kunlun_jax.data import kuairand, movielens, parquet, synthetic
from kunlun_jax.data.dataset import Dataset
from kunlun_jax.data.kuairand import KuaiRandConfig
from kunlun_jax.data.movielens import MovieLensConfig
from kunlun_jax.data.synthetic import SyntheticConfig

Kind = Literal["auto", "synthetic", "kuairand", "movielens", "parquet"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which data set, and where it is."""

    kind: Kind = "auto"
    """auto: what lies in root (schema.json, KuaiRand's or MovieLens' files); without root the synthetic world."""
    root: Path | None = None
    """Folder of the data set; for kuairand and movielens the environment variable KUNLUN_DATA stands in for it."""
    cache: Path | None = None
    """Folder for prepared data; default KUNLUN_CACHE, else ~/.cache/kunlun_jax."""
    synthetic: SyntheticConfig = SyntheticConfig()
    """The synthetic world."""
    kuairand: KuaiRandConfig = KuaiRandConfig()
    """KuaiRand."""
    movielens: MovieLensConfig = MovieLensConfig()
    """MovieLens-1M."""


def detect(root: Path) -> Kind:
    """What lies in a folder.

    Raises:
      ValueError: nothing that is known, or more than one data set.
    """
    if not root.is_dir():
        raise ValueError(f"data.root is {str(root)!r}; it must be an existing folder")
    signs: dict[Kind, tuple[str, ...]] = {
        "parquet": ("schema.json",),
        "kuairand": ("log_standard_*_pure.csv", "data/log_standard_*_pure.csv", "KuaiRand-Pure/data/log_standard_*"),
        "movielens": ("ratings.dat", "ml-1m/ratings.dat"),
    }
    found: list[Kind] = [kind for kind, patterns in signs.items() if any(any(root.glob(p)) for p in patterns)]
    if len(found) != 1:
        raise ValueError(
            f"data.root {str(root)!r} holds {found or 'no data set that is known'}; "
            "say which one with --data.kind, or name its own folder"
        )
    return found[0]


def open_dataset(config: DataConfig) -> Dataset:
    """Opens, and where needed first prepares, the data set that `config` names.

    Raises:
      ValueError: `root` is missing, unknown or holds bad data; the message names file, field and value.
    """
    kind = config.kind
    if kind == "auto":
        kind = "synthetic" if config.root is None else detect(config.root)
    if kind == "synthetic":
        if config.root is not None:
            raise ValueError(f"data.root is {str(config.root)!r}, but the synthetic world has no files; leave one out")
        return synthetic.open_dataset(config.synthetic)
    root = config.root
    if root is None and kind in ("kuairand", "movielens") and os.environ.get("KUNLUN_DATA"):
        root = Path(os.environ["KUNLUN_DATA"])
    if root is None:
        raise ValueError(f"data.root is not set; for {kind} say --data.root FOLDER")
    if kind == "kuairand":
        return kuairand.open_dataset(root, config.cache, config.kuairand)
    if kind == "movielens":
        return movielens.open_dataset(root, config.cache, config.movielens)
    return parquet.open_dataset(root, cache=config.cache)
