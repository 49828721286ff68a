"""`open_dataset`: a folder of Parquet and a ``schema.json`` becomes a `Dataset`; docs/own_data.md says what goes in.

Parquet is made to be streamed and training wants single rows, so the columns are converted once, checked on the way,
to ``.npy`` files that every process maps into memory. They live in a cache folder named by a hash of all the data. The
as-of join of rows with events is done then as well: per row and event type, the range of the events strictly before
it. What is kept in memory while converting is one row group, and 16 bytes per distinct history key.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from kunlun_jax.data.cache import default_cache
from kunlun_jax.data.checks import (
    ExampleGroup,
    Layout,
    Report,
    event_groups,
    example_groups,
    find_layout,
    parquet_file,
)
from kunlun_jax.data.dataset import Dataset, DatasetConfig, EventRows, Ragged, Rows, gather_ranges
from kunlun_jax.data.schema import EventType, Schema

FORMAT = 1  # of the cache folder; part of the fingerprint


@dataclasses.dataclass(frozen=True)
class ParquetConfig(DatasetConfig):
    """Prepared data: its ``schema.json`` says everything, so there is no option."""


def open_dataset(root: Path, cache: Path | None = None) -> Dataset:
    """Opens a prepared data set; the first time it is checked and converted, which a progress bar shows.

    Args:
      root: folder with ``schema.json``, ``examples/<split>/*.parquet`` and ``events/<type>/*.parquet``.
      cache: where the converted columns are kept; default is the environment variable ``KUNLUN_CACHE``, else
        ``~/.cache/kunlun_jax``. They take about as much room as the uncompressed data.

    Raises:
      DataError: something in the data is not as it must be; names file, row group, row, column and value.
    """
    dataset = convert(Path(root), cache, Report(strict=True))
    assert dataset is not None  # a strict report raises instead
    return dataset


def convert(root: Path, cache: Path | None, report: Report) -> Dataset | None:
    """`open_dataset` with the problems going to `report`; None when there are any."""
    layout = find_layout(root, report)
    if layout is None or report.problems:
        if layout is not None:  # find what is wrong inside the files that are there, too
            _read_all(layout, report)
        return None
    before = _stamps(layout)
    fingerprint = _fingerprint(layout)
    folder = (cache or default_cache()) / fingerprint
    if not (folder / "meta.json").exists() and not _build(layout, before, folder, report):
        return None
    meta = json.loads((folder / "meta.json").read_text())
    splits = {name: range(start, stop) for name, (start, stop) in meta["splits"].items()}
    source = ParquetSource(folder, layout.schema, meta["rows"])
    return Dataset(source, splits, tuple(meta["p_train"]), fingerprint)


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

    def keys(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """The schema's key columns, int64 or str."""
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
                found[name] = strings.to_numpy(zero_copy_only=False).astype(np.str_)
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
                f"rows {index.min()} to {index.max()} asked of a data set with rows 0 to {self.length - 1}"
            )
        return index

    @functools.cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        return {path.stem: _mapped(path) for path in sorted(self.folder.glob("*.npy"))}


def _take(column: np.ndarray, index: np.ndarray) -> np.ndarray:
    # Callers have checked the range; "clip" spares numpy a pass, but refuses to take nothing from nothing.
    if not len(index):
        return np.zeros((0, *column.shape[1:]), column.dtype)
    return np.take(column, index, axis=0, mode="clip")


def _mapped(path: Path) -> np.ndarray:
    # Small files are read: an empty one cannot be mapped.
    if path.stat().st_size <= 4096:
        return np.load(path)
    return np.load(path, mmap_mode="r").view(np.ndarray)


def _fingerprint(layout: Layout) -> str:
    """SHA-256 of the schema and of every byte of every file; about a second a gigabyte."""
    total = hashlib.sha256(f"kunlun_jax {FORMAT}\n{layout.schema.to_json()}".encode())
    size = sum(file.stat().st_size for file in layout.files)
    with _progress("hashing", size, "B") as bar:
        for file in layout.files:
            with open(file, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            total.update(f"{file.relative_to(layout.root).as_posix()} {digest}\n".encode())
            bar.update(file.stat().st_size)
    return total.hexdigest()


def _stamps(layout: Layout) -> dict[Path, tuple[int, int]]:
    """Size and time of change of every file."""
    stats = {file: file.stat() for file in layout.files}
    return {file: (stat.st_size, stat.st_mtime_ns) for file, stat in stats.items()}


def _progress(what: str, total: int | None, unit: str) -> tqdm:
    return tqdm(desc=what, total=total, unit=unit, unit_scale=True, delay=2.0)


def _read_all(layout: Layout, report: Report) -> None:
    for event in layout.schema.events:
        for _ in event_groups(layout, event, report):
            pass
    for split in layout.examples:
        for _ in example_groups(layout, split, report):
            pass


def _build(layout: Layout, before: dict[Path, tuple[int, int]], folder: Path, report: Report) -> bool:
    """Converts into a temporary folder that is renamed when all is well; True when `folder` is there at the end."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name[:16]}-", dir=folder.parent))
    try:
        with contextlib.ExitStack() as files:
            meta = _Conversion(layout, temporary, report, files).run()
        for file, stamp in _stamps(layout).items():
            if stamp != before[file]:
                report.add("changed", file, "the file changed while it was read; open it when it is complete")
        if meta is None or report.problems:
            return False
        (temporary / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
        temporary.chmod(0o755)  # mkdtemp's is private; several users may share a cache
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / "meta.json").exists():  # else another process was faster with the same data
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


class _Conversion:
    def __init__(self, layout: Layout, folder: Path, report: Report, closing: contextlib.ExitStack):
        self.layout, self.schema, self.folder, self.report = layout, layout.schema, folder, report
        self.closing = closing
        self.files: dict[str, _NpyWriter] = {}

    def run(self) -> dict | None:
        """The contents of ``meta.json``; None when the report has problems."""
        with _progress("converting", _total_rows(self.layout), "row") as self.bar:
            histories = [self._events(i, event) for i, event in enumerate(self.schema.events)]
            splits, rows, means = {}, 0, []
            for split in self.layout.examples:
                first, sums, weight = rows, np.zeros(len(self.schema.tasks)), 0.0
                for group in self._good(example_groups(self.layout, split, self.report)):
                    self._examples(group, histories)
                    rows += len(group.weights)
                    weights = group.weights.astype(np.float64)
                    weight += float(weights.sum())
                    sums += weights @ group.labels.astype(np.float64)
                splits[split] = [first, rows]
                if split == "train":
                    means = self._click_rates(sums, weight)
        if rows >= 2**31:
            right = f"{rows} rows; row numbers are int32, bring less than {2**31}"
            self.report.add("too many rows", self.layout.root / "examples", right)
        if self.report.problems:
            return None
        return {"format": FORMAT, "rows": rows, "splits": splits, "p_train": means}

    def _good(self, groups: Iterator) -> Iterator:
        """Groups while nothing is wrong; after that the rest is still checked, but nothing written."""
        for group in groups:
            if not self.report.problems:
                yield group

    def _events(self, number: int, event: EventType) -> "_Histories":
        name = f"events.{number}"
        keys, starts, rows = [], [], 0
        for group in self._good(event_groups(self.layout, event, self.report)):
            new = np.concatenate([[True], np.diff(group.history_key) != 0])
            new[0] = not keys or group.history_key[0] != keys[-1][-1]
            if new.any():
                keys.append(group.history_key[new])
                starts.append(rows + np.flatnonzero(new))
            self._write(f"{name}.ids", group.ids)
            self._write(f"{name}.dense", group.dense)
            self._write(f"{name}.time_ms", group.time_ms)
            rows += len(group.time_ms)
            self.bar.update(len(group.time_ms))
        if self.report.problems:
            return _Histories(np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros(0, np.int64))
        self.files[f"{name}.time_ms"].flush()
        time_ms = _mapped(self.folder / f"{name}.time_ms.npy")
        return _Histories(np.concatenate(keys), np.concatenate([*starts, [rows]]), time_ms)

    def _examples(self, group: ExampleGroup, histories: list["_Histories"]) -> None:
        for name in ("categorical", "dense", "labels", "weights", "request_time_ms"):
            self._write(name, getattr(group, name))
        for i, feature in enumerate(self.schema.multi_valued):
            values, lengths = group.multi_valued[feature.name]
            self._write(f"multi_valued.{i}.values", values)
            self._write_splits(f"multi_valued.{i}.splits", lengths)
        for i, history in enumerate(histories):
            start, stop = history.before(group.history_key, group.history_time_ms)
            self._write(f"history.{i}.start", start)
            self._write(f"history.{i}.stop", stop)
        for i, name in enumerate(self.schema.keys):
            key = group.keys[name]
            known = self.files.keys() & {f"keys.{i}.values", f"keys.{i}.bytes"}
            wanted = f"keys.{i}.values" if pa.types.is_int64(key.type) else f"keys.{i}.bytes"
            if known and wanted not in known:
                right = "this key is text in some files and whole numbers in others; it must be the same in all"
                self.report.add("mixed key types", group.file, right, name)
            elif pa.types.is_int64(key.type):
                self._write(wanted, key.to_numpy())
            else:
                self._write(wanted, _utf8(key))
                self._write_splits(f"keys.{i}.offsets", pc.call_function("binary_length", [key]).to_numpy())
        self.bar.update(len(group.weights))

    def _click_rates(self, sums: np.ndarray, weight: float) -> list[float]:
        where = self.layout.root / "examples" / "train"
        if self.report.problems:
            return []
        if weight == 0:
            self.report.add("no weight", where, "all weights are 0; some row must count", "weight")
            return []
        means = [float(s) / weight for s in sums]
        for task, mean in zip(self.schema.tasks, means, strict=True):
            if not 0 < mean < 1:
                right = f"the mean label of the training split is {mean}; NE needs it strictly between 0 and 1"
                self.report.add("constant label", where, right, task)
        return means

    def _write(self, name: str, values: np.ndarray) -> None:
        if name not in self.files:
            file = _NpyWriter(self.folder / f"{name}.npy", values.dtype, values.shape[1:])
            self.closing.callback(file.close)
            self.files[name] = file
        self.files[name].append(values)

    def _write_splits(self, name: str, lengths: np.ndarray) -> None:
        if name not in self.files:
            self._write(name, np.zeros(1, np.int64))
        self._write(name, self.files[name].last + np.cumsum(lengths, dtype=np.int64))


class _Histories:
    """Events sorted by (key, time), searched for many rows at once."""

    def __init__(self, keys: np.ndarray, starts: np.ndarray, time_ms: np.ndarray):
        self.keys, self.starts, self.time_ms = keys, starts, time_ms

    def before(self, key: np.ndarray, time_ms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Per row the range of the events of `key` strictly before `time_ms`; int64, empty where there are none."""
        if not len(self.keys):
            return np.zeros_like(key), np.zeros_like(key)
        place = np.minimum(np.searchsorted(self.keys, key), len(self.keys) - 1)
        known = self.keys[place] == key
        start = np.where(known, self.starts[place], 0)
        low, high = start.copy(), np.where(known, self.starts[place + 1], 0)
        # Bisection of all rows in step: a key's events are sorted by time, and the longest history takes most rounds.
        open_rows = np.flatnonzero(low < high)
        while len(open_rows):
            middle = (low[open_rows] + high[open_rows]) // 2
            earlier = self.time_ms[middle] < time_ms[open_rows]
            low[open_rows] = np.where(earlier, middle + 1, low[open_rows])
            high[open_rows] = np.where(earlier, high[open_rows], middle)
            open_rows = open_rows[low[open_rows] < high[open_rows]]
        return start, low


class _NpyWriter:
    """A ``.npy`` file that grows; the header's room for a longer first axis is numpy's own provision for this."""

    def __init__(self, path: Path, dtype: np.dtype, tail: tuple[int, ...]):
        self.dtype, self.tail, self.rows, self.last = dtype, tail, 0, 0
        self._stream = open(path, "wb")  # noqa: SIM115, close() closes it
        self._header_size = self._write_header()

    def append(self, values: np.ndarray) -> None:
        assert values.dtype == self.dtype, (values.dtype, self.dtype)
        assert values.shape[1:] == self.tail, (values.shape, self.tail)
        self._stream.write(np.ascontiguousarray(values).data)
        self.rows += len(values)
        if len(values) and not self.tail:
            self.last = values[-1]

    def flush(self) -> None:
        """Makes what was written readable as a file."""
        self._stream.seek(0)
        size = self._write_header()
        assert size == self._header_size, (size, self._header_size)
        self._stream.seek(0, os.SEEK_END)
        self._stream.flush()

    def close(self) -> None:
        self.flush()
        self._stream.close()

    def _write_header(self) -> int:
        descr = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.rows, *self.tail)}
        np.lib.format.write_array_header_1_0(self._stream, header)
        return self._stream.tell()


def _utf8(strings: pa.Array) -> np.ndarray:
    """The bytes of all strings, uint8."""
    offsets = np.frombuffer(strings.buffers()[1], np.int64)[strings.offset : strings.offset + len(strings) + 1]
    data = strings.buffers()[2]
    text = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return text[offsets[0] : offsets[-1]]


def _total_rows(layout: Layout) -> int | None:
    """For the progress bar; None when a file cannot be read, which its check will report."""
    try:
        total = 0
        for file in layout.files:
            with parquet_file(file) as parquet:
                total += parquet.metadata.num_rows
        return total
    except (pa.ArrowException, OSError):
        return None
