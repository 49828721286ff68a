"""`open_dataset`: a folder of Parquet and a ``schema.json`` becomes a `Dataset`; docs/own_data.md says what goes in.

Parquet is made to be streamed and training wants single rows, so the columns are converted once
(`kunlun_jax.data.parquet.columns`) and mapped into memory by every process. They live in a cache folder named by a
hash of all data.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from kunlun_jax.data.cache import build_once, default_cache
from kunlun_jax.data.dataset import Dataset, DatasetConfig, EventRows, Ragged, Rows, gather_ranges
from kunlun_jax.data.parquet.columns import META, check_all, fingerprint, mapped, write_columns
from kunlun_jax.data.parquet.files import Layout, find_layout
from kunlun_jax.data.parquet.learned import FOLDER
from kunlun_jax.data.parquet.report import Report
from kunlun_jax.data.schema import Schema


@dataclasses.dataclass(frozen=True)
class ParquetConfig(DatasetConfig):
    """Prepared data: its ``schema.json`` says everything, so there are no options."""

    signs = ("schema.json",)

    def open(self, root: Path | None, cache: Path | None) -> Dataset:
        """`open_dataset`."""
        assert root is not None
        return open_dataset(root, cache)


def open_dataset(root: Path, cache: Path | None = None) -> Dataset:
    """Opens a prepared data set; the first time it is checked and converted, with a progress bar.

    Args:
      root: folder with ``schema.json``, ``examples/<split>/*.parquet`` and ``events/<type>/*.parquet``.
      cache: where the converted columns are kept; the default is the environment variable ``KUNLUN_CACHE``, else
        ``~/.cache/kunlun_jax``. They take about as much space as the uncompressed data.

    Raises:
      DataError: something in the data is invalid; names file, row group, row, column and value.
    """
    dataset = open_checked(Path(root), cache, Report(strict=True))
    assert dataset is not None  # a strict report raises instead
    return dataset


def open_checked(root: Path, cache: Path | None, report: Report) -> Dataset | None:
    """`open_dataset` with the problems going to `report`; None if there are any."""
    layout = find_layout(root, report)
    if layout is None or report.problems:
        if layout is not None:  # also find what is wrong inside the files that exist
            check_all(layout, report)
        return None
    before = _stamps(layout)
    cache = cache or default_cache()
    folder = cache / fingerprint(layout, cache)

    def make(work: Path) -> bool:
        well = write_columns(layout, work, report)
        for file, stamp in _stamps(layout).items():
            if stamp != before[file]:
                report.add("changed", file, "the file changed while it was read; open it when it is complete")
        return well and not report.problems

    return open_columns(folder) if build_once(folder, make) else None


def open_columns(folder: Path) -> Dataset:
    """The data set whose columns `write_columns` wrote into `folder`, which is named by its fingerprint."""
    meta = json.loads((folder / META).read_text())
    splits = {name: range(start, stop) for name, (start, stop) in meta["splits"].items()}
    source = ParquetSource(folder, Schema.read(folder / "schema.json"), meta["rows"])
    learned = folder / FOLDER
    return Dataset(source, splits, tuple(meta["p_train"]), folder.name, learned if learned.exists() else None)


def _stamps(layout: Layout) -> dict[Path, tuple[int, int]]:
    """Size and modification time of every file."""
    stats = {file: file.stat() for file in layout.files}
    return {file: (stat.st_size, stat.st_mtime_ns) for file, stat in stats.items()}


@dataclasses.dataclass(frozen=True)
class ParquetSource:
    """A `Source` over the converted columns in `folder`; pickles as its path, maps the files on first use."""

    folder: Path
    schema: Schema
    length: int

    def __len__(self) -> int:
        return self.length

    def __getstate__(self) -> dict:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def rows(self, index: np.ndarray, max_events: Mapping[str, int]) -> Rows:
        """The examples `index`; see `Source.rows`."""
        index = self._checked(index)
        columns = self._columns
        multi_valued = {}
        for i, feature in enumerate(self.schema.multi_valued):
            splits = columns[f"multi_valued.{i}.splits"]
            items, own_splits = gather_ranges(splits[index], splits[index + 1])
            multi_valued[feature.name] = Ragged(_take(columns[f"multi_valued.{i}.values"], items), own_splits)
        events = {}
        for i, event in enumerate(self.schema.events):
            start, stop = _take(columns[f"history.{i}.start"], index), _take(columns[f"history.{i}.stop"], index)
            items, splits = gather_ranges(np.maximum(start, stop - max_events[event.name]), stop)
            ids, dense = _take(columns[f"events.{i}.ids"], items), _take(columns[f"events.{i}.dense"], items)
            time_ms = _take(columns[f"events.{i}.time_ms"], items)
            events[event.name] = EventRows(ids, dense, time_ms, splits, stop - start)
        names = ("categorical", "dense", "labels", "weights", "request_time_ms")
        plain = {name: _take(columns[name], index) for name in names}
        return Rows(row=index, multi_valued=multi_valued, events=events, **plain)

    def history_lengths(self, index: np.ndarray, event: str) -> np.ndarray:
        """Events of type `event` before each request, uncut, int64."""
        index = self._checked(index)
        i = self._event_number(event)
        return _take(self._columns[f"history.{i}.stop"], index) - _take(self._columns[f"history.{i}.start"], index)

    def list_lengths(self, index: np.ndarray, feature: str) -> np.ndarray:
        """Ids of the multi-valued `feature` in each example, int64."""
        index, names = self._checked(index), [known.name for known in self.schema.multi_valued]
        if feature not in names:
            raise KeyError(f"schema {self.schema.name!r} has no multi-valued feature {feature!r}; it has {names}")
        splits = self._columns[f"multi_valued.{names.index(feature)}.splits"]
        return _take(splits, index + 1) - _take(splits, index)

    def keys(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """The schema's key columns, int64, or text as Python's str in arrays of objects."""
        index = self._checked(index)
        columns = self._columns
        found = {}
        for i, name in enumerate(self.schema.keys):
            if f"keys.{i}.values" in columns:
                found[name] = _take(columns[f"keys.{i}.values"], index)
            else:
                offsets = columns[f"keys.{i}.offsets"]
                items, splits = gather_ranges(offsets[index], offsets[index + 1])
                text = _take(columns[f"keys.{i}.bytes"], items)
                strings = pa.LargeStringArray.from_buffers(len(index), pa.py_buffer(splits), pa.py_buffer(text))
                # Numpy's own text would take as much room for each as for the longest, and loses zeros at the end.
                found[name] = strings.to_numpy(zero_copy_only=False)
        return found

    def column(self, name: str) -> np.ndarray:
        """A whole converted column, mapped and read-only, for summaries; the names are those of the cache's files."""
        return self._columns[name]

    def _event_number(self, event: str) -> int:
        return self.schema.events.index(self.schema.event(event))

    def _checked(self, index: np.ndarray) -> np.ndarray:
        index = np.asarray(index, np.int64)
        if index.size and (index.min() < 0 or index.max() >= self.length):
            raise IndexError(
                f"rows {index.min()} to {index.max()} requested from a data set with rows 0 to {self.length - 1}"
            )
        return index

    @functools.cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        return {path.stem: mapped(path) for path in sorted(self.folder.glob("*.npy"))}


def _take(column: np.ndarray, index: np.ndarray) -> np.ndarray:
    # Callers have checked the range; "clip" spares numpy a pass, but refuses to take from an empty array.
    if not len(index):
        return np.zeros((0, *column.shape[1:]), column.dtype)
    return np.take(column, index, axis=0, mode="clip")
