"""`Rows`, `Source` and `Dataset`: what every data set offers to the pipeline, on the host, still jagged."""

import abc
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from kunlun_jax.data.schema import Schema


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Lists of many rows in one array: row ``i`` owns ``values[splits[i]:splits[i + 1]]``."""

    values: np.ndarray  # int64 [items]
    splits: np.ndarray  # int64 [rows + 1]


@dataclasses.dataclass(frozen=True)
class EventRows:
    """Histories of many rows for one event type, oldest event first, each strictly before its row's request."""

    ids: np.ndarray  # int64 [items, categorical fields], as in the data, not yet mapped to table rows
    dense: np.ndarray  # float32 [items, dense fields]
    time_ms: np.ndarray  # int64 [items], milliseconds since the epoch
    splits: np.ndarray  # int64 [rows + 1]
    available: np.ndarray  # int64 [rows], how many events there were before the cut to the newest `max_events`


@dataclasses.dataclass(frozen=True)
class Rows:
    """Examples as a source hands them out: raw ids, columns in schema order."""

    row: np.ndarray  # int64 [rows], number of the example in the data set
    categorical: np.ndarray  # int64 [rows, features]
    multi_valued: dict[str, Ragged]
    dense: np.ndarray  # float32 [rows, features]
    events: dict[str, EventRows]
    labels: np.ndarray  # float32 [rows, tasks], NaN where there is none
    weights: np.ndarray  # float32 [rows]
    request_time_ms: np.ndarray  # int64 [rows]


@runtime_checkable
class Source(Protocol):
    """Random access to the examples of a data set.

    Picklable and cheap to pickle: Grain sends it to its workers, where files are opened on first use. The result of a
    call depends only on its arguments, never on earlier calls.
    """

    @property
    def schema(self) -> Schema:
        """Describes every column of every row."""
        ...

    def __len__(self) -> int: ...

    def rows(self, index: np.ndarray, max_events: Mapping[str, int]) -> Rows:
        """The examples `index` (int64, any order), histories cut to the newest ``max_events[type]`` events."""
        ...

    def history_lengths(self, index: np.ndarray, event: str) -> np.ndarray:
        """Events of type `event` before each request, uncut, int64."""
        ...

    def list_lengths(self, index: np.ndarray, feature: str) -> np.ndarray:
        """Ids of the multi-valued `feature` in each example, int64."""
        ...

    def keys(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """The schema's key columns of the examples `index`, int64, or text as Python's str in arrays of objects."""
        ...


@runtime_checkable
class KnowsProbabilities(Protocol):
    """A source whose labels were drawn from known probabilities."""

    def probability(self, index: np.ndarray) -> np.ndarray:
        """Probabilities of label 1, for the examples `index`: float64 ``[rows, tasks]``, strictly between 0 and 1."""
        ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A source, its splits, and what metrics need to know about it.

    Attributes:
      source: the examples; a split's rows are in order of request time.
      splits: name -> range of row numbers; always "train", usually "valid" and "test".
      p_train: click rate of the training split per task, over the rows that have its label; it fixes the denominator of
        NE.
      fingerprint: changes whenever a row could differ; a run refuses to continue on other data.
      learned: folder of the vocabularies and means that the columns were made with, if any; runs keep a copy.
    """

    source: Source
    splits: dict[str, range]
    p_train: tuple[float, ...]
    fingerprint: str
    learned: Path | None = None

    @property
    def schema(self) -> Schema:
        """Schema of the source."""
        return self.source.schema

    def split(self, name: str) -> range:
        """Row numbers of a split; a KeyError names the existing ones."""
        if name not in self.splits:
            raise KeyError(f"no split {name!r} in data set {self.schema.name!r}; it has {sorted(self.splits)}")
        return self.splits[name]

    def floor(self, split: str, task: int = 0) -> float | None:
        """The least NE that any predictor can expect on a split; None where the probabilities of labels are unknown.

        It is the mean entropy of the split's labels given the inputs over the entropy of `p_train`, which is also the
        expected NE of the exact probabilities. It takes as long as reading the split.

        Raises:
          KeyError: no such split.
          ValueError: the split is empty.
        """
        rows = self.split(split)
        if not isinstance(self.source, KnowsProbabilities):
            return None
        if not rows:
            raise ValueError(f"split {split!r} has no rows, so it has no entropy floor")
        probability = self.source.probability(np.arange(rows.start, rows.stop))[:, task]
        return float(_entropy(probability).mean() / _entropy(np.asarray(self.p_train[task])))


@dataclasses.dataclass(frozen=True)
class DatasetConfig(abc.ABC):
    """Base of the options of every data set. A run's config.json names the class, so a new one is registered nowhere.

    Attributes:
      signs: patterns of files, at least one of which a folder with the data set has; none for one without files.
      public: whether the environment variable KUNLUN_DATA may stand in for its folder.
    """

    signs: ClassVar[tuple[str, ...]] = ()
    public: ClassVar[bool] = False

    @abc.abstractmethod
    def open(self, root: Path | None, cache: Path | None) -> Dataset:
        """The data set, prepared first if it is not yet.

        Args:
          root: its folder; None for a data set without `signs`, and only then.
          cache: folder for prepared data; None is `kunlun_jax.data.cache.default_cache`.

        Raises:
          ValueError: bad data; the message names file, field and value.
        """


def _entropy(p: np.ndarray) -> np.ndarray:
    """Entropy of a coin in nats."""
    return -(p * np.log(p) + (1 - p) * np.log1p(-p))


FARTHEST = 100.0
"""Standardized dense features are cut off at this many deviations (O): a wrong unit, or a tail heavier than any we have
seen, then costs no more than an odd example. On the data sets at hand none is beyond 10."""


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of each dense feature of a schema; tuples, so that a module can hold them."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


OUTLYING = 1000.0
"""A value is left out of means and moments if it is farther from the median than this times the middle 98% are wide."""
USUAL_QUANTILES = (0.01, 0.5, 0.99)
"""What `usual` judges by: the ends of the middle 98%, and the median between them."""


def usual(
    values: np.ndarray, low: np.ndarray | float, median: np.ndarray | float, high: np.ndarray | float
) -> np.ndarray:
    """Which values are in proportion, by `OUTLYING`; all of a column whose middle 98% are one value.

    Args:
      values: float64 ``[rows]``, or ``[rows, columns]``.
      low: quantile 1% of each column.
      median: of each column.
      high: quantile 99% of each column.

    Returns:
      bool, like `values`.
    """
    return (np.abs(values - median) <= OUTLYING * (high - low)) | (high == low)


def dense_moments(dataset: Dataset, blocks: int = 16, block: int = 512) -> Moments:
    """Moments of the dense features over `blocks` evenly spaced blocks of training rows.

    Whole blocks, so that only few row groups of a large data set are read. A constant feature has deviation 1. Values
    that are `OUTLYING` are left out: one of them would make a deviation beside which all others are the same. So are
    nulls that an indicator marks, unless there is nothing else: a mean in their place says nothing of the spread.
    """
    split = dataset.split("train")
    starts = np.linspace(0, max(len(split) - block, 0), blocks).astype(np.int64)
    index = np.unique(split.start + np.minimum(starts[:, None] + np.arange(block), len(split) - 1))
    none = {event.name: 0 for event in dataset.schema.events}
    dense = dataset.source.rows(index, none).dense.astype(np.float64)
    mean, std, largest = dense.mean(axis=0), dense.std(axis=0), np.abs(dense).max(axis=0, initial=0)
    bounds, there = np.quantile(dense, USUAL_QUANTILES, axis=0), _there(dataset.schema, dense)
    for column in np.flatnonzero(~there.all(axis=0)):
        bounds[:, column] = np.quantile(dense[there[:, column], column], USUAL_QUANTILES)
    counted = there & usual(dense, *bounds)
    for column in np.flatnonzero(~counted.all(axis=0)):
        kept = dense[counted[:, column], column]
        mean[column], std[column], largest[column] = kept.mean(), kept.std(), np.abs(kept).max()
    # A spread that comes from rounding is none.
    std = np.where(std > 1e-6 * np.maximum(largest, 1e-30), std, 1.0)
    return Moments(tuple(map(float, mean)), tuple(map(float, std)))


def _there(schema: Schema, dense: np.ndarray) -> np.ndarray:
    """Where a dense feature is no null, bool like `dense`; all of it where there is no indicator, or only nulls."""
    there = np.ones(dense.shape, bool)
    for column, name in enumerate(schema.dense):
        mark = f"{name}_is_null"
        if (name, "indicator") in schema.nulls and mark in schema.dense:
            given = dense[:, schema.dense.index(mark)] == 0
            there[:, column] = given | ~given.any()
    return there


def group_numbers(source: Source, index: np.ndarray, chunk: int = 65536) -> np.ndarray | None:
    """The group of each of the examples `index` as a number, by the schema's `group`; None if it has none.

    Keys are read in chunks: text of millions of rows at once would take more room than all else.

    Returns:
      int64 ``[rows]``, from 0 in the order of first appearance.
    """
    group = source.schema.group
    if not group:
        return None
    numbers: dict[Any, int] = {}
    codes = np.empty(len(index), np.int64)
    for start in range(0, len(index), chunk):
        keys = source.keys(index[start : start + chunk])[group].tolist()
        codes[start : start + chunk] = [numbers.setdefault(key, len(numbers)) for key in keys]
    return codes


def gather_ranges(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the concatenation of ``starts[i]:stops[i]``, and its splits; both int64, without a Python loop."""
    lengths = stops - starts
    splits = np.zeros(len(starts) + 1, np.int64)
    np.cumsum(lengths, out=splits[1:])
    index = np.arange(splits[-1], dtype=np.int64) + np.repeat(starts - splits[:-1], lengths)
    return index, splits
