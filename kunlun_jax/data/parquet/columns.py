"""Parquet to columns: checked on the way, joined as of each request, and written as ``.npy`` files that processes map.

The as-of join of rows with events is done here: per row and event type, the range of the events strictly before it.
Memory holds one row group, and 16 bytes per distinct history key.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kunlun_jax.data.digests import digests
from kunlun_jax.data.parquet import times
from kunlun_jax.data.parquet.checks import ExampleGroup, event_groups, example_groups
from kunlun_jax.data.parquet.files import Layout
from kunlun_jax.data.parquet.learn import learn
from kunlun_jax.data.parquet.report import Report
from kunlun_jax.data.parquet.row_group import parquet_file
from kunlun_jax.data.schema import EventType
from kunlun_jax.progress import ProgressBar

FORMAT = 2  # of the folder; part of the fingerprint
META = "meta.json"


def fingerprint(layout: Layout, cache: Path) -> str:
    """SHA-256 of the schema and of every byte of every file; `cache` remembers files that were read before."""
    total = hashlib.sha256(f"kunlun_jax {FORMAT}\n{layout.schema.to_json()}".encode())
    if any(policy == "indicator" for _, policy in layout.schema.nulls):
        total.update(b"means of usual values\n")  # once they were of all, so older columns of such data are others
    for file, digest in zip(layout.files, digests(layout.files, cache), strict=True):
        total.update(f"{file.relative_to(layout.root).as_posix()} {digest}\n".encode())
    return total.hexdigest()


def write_columns(layout: Layout, folder: Path, report: Report) -> bool:
    """Checks all of a data set and writes its columns into the empty `folder`; True if there was no problem."""
    with contextlib.ExitStack() as files:
        meta = _Conversion(layout, folder, report, files).run()
    if meta is None or report.problems:
        return False
    (folder / "schema.json").write_text(layout.schema.with_indicators().to_json())
    (folder / META).write_text(json.dumps(meta, indent=2) + "\n")
    return True


def check_all(layout: Layout, report: Report) -> None:
    """Only the checks."""
    for event in layout.schema.events:
        for _ in event_groups(layout, event, report):
            pass
    for split in layout.examples:
        for _ in example_groups(layout, split, report):
            pass


def _progress(what: str, total: int | None, unit: str) -> ProgressBar:
    return ProgressBar(desc=what, total=total, unit=unit, unit_scale=True, delay=2.0)


def mapped(path: Path) -> np.ndarray:
    """A column as an array that the operating system reads as it is used."""
    # Small files are read: an empty one cannot be mapped.
    if path.stat().st_size <= 4096:
        return np.load(path)
    return np.load(path, mmap_mode="r").view(np.ndarray)


class _Conversion:
    def __init__(self, layout: Layout, folder: Path, report: Report, closing: contextlib.ExitStack):
        self.layout, self.schema, self.folder, self.report = layout, layout.schema, folder, report
        self.closing = closing
        self.files: dict[str, _NpyWriter] = {}

    def run(self) -> dict | None:
        """The contents of ``meta.json``; None if the report has problems."""
        with _progress("learning from training rows", None, "row") as bar:
            self.learned = learn(self.layout, bar.update)
        self.learned.write(self.folder)
        with _progress("converting", _total_rows(self.layout), "row") as self.bar:
            spans = {event.name: times.Span() for event in self.schema.events}
            histories = [self._events(i, event, spans[event.name]) for i, event in enumerate(self.schema.events)]
            splits, rows, means = {}, 0, []
            requests, moments = {split: times.Span() for split in self.layout.examples}, times.Span()
            for split in self.layout.examples:
                first, of_rows, sums, weight = rows, 0.0, *np.zeros((2, len(self.schema.tasks)))
                for group in self._good(example_groups(self.layout, split, self.report, self.learned)):
                    self._examples(group, histories)
                    requests[split].add(group.request_time_ms)
                    moments.add(group.history_time_ms)
                    rows += len(group.weights)
                    weights, there = group.weights.astype(np.float64), ~np.isnan(group.labels)
                    of_rows += weights.sum()
                    weight += [weights[known].sum() for known in there.T]
                    sums += weights @ np.where(there, group.labels, 0).astype(np.float64)
                splits[split] = [first, rows]
                if first == rows and not self.report.problems:
                    right = "it has no rows; write some, or remove the folder"
                    self.report.add("no rows", self.layout.root / "examples" / split, right)
                elif split == "train":
                    means = self._click_rates(sums, weight, of_rows)
            if self.report.problems:
                return None
            times.check_order(self.layout, requests, self.report)
            for event, span in spans.items():
                times.check_overlap(self.layout, event, span, moments, self.report)
        if rows >= 2**31:
            right = f"{rows} rows; row numbers are int32, bring less than {2**31}"
            self.report.add("too many rows", self.layout.root / "examples", right)
        if self.report.problems:
            return None
        return {"format": FORMAT, "rows": rows, "splits": splits, "p_train": means}

    def _good(self, groups: Iterator) -> Iterator:
        """Groups as long as nothing is wrong; after that the rest is still checked, but not written."""
        for group in groups:
            if not self.report.problems:
                yield group

    def _events(self, number: int, event: EventType, span: times.Span) -> "_Histories":
        name = f"events.{number}"
        # Columns of no rows, for a type that nobody has yet.
        dense = self.schema.with_indicators().events[number].dense
        self._write(f"{name}.ids", np.zeros((0, len(event.categorical)), np.int64))
        self._write(f"{name}.dense", np.zeros((0, len(dense)), np.float32))
        self._write(f"{name}.time_ms", np.zeros(0, np.int64))
        keys, starts, rows = [], [], 0
        for group in self._good(event_groups(self.layout, event, self.report, self.learned)):
            new = np.concatenate([[True], np.diff(group.history_key) != 0])
            new[0] = not keys or group.history_key[0] != keys[-1][-1]
            if new.any():
                keys.append(group.history_key[new])
                starts.append(rows + np.flatnonzero(new))
            self._write(f"{name}.ids", group.ids)
            self._write(f"{name}.dense", group.dense)
            self._write(f"{name}.time_ms", group.time_ms)
            span.add(group.time_ms)
            rows += len(group.time_ms)
            self.bar.update(len(group.time_ms))
        if self.report.problems or not keys:
            return _Histories(np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros(0, np.int64))
        self.files[f"{name}.time_ms"].flush()
        time_ms = mapped(self.folder / f"{name}.time_ms.npy")
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

    def _click_rates(self, sums: np.ndarray, weight: np.ndarray, of_rows: float) -> list[float]:
        """Mean label of each task, by the weights of the rows that have one; `of_rows` is that of all."""
        where = self.layout.root / "examples" / "train"
        if self.report.problems:
            return []
        if not of_rows:
            self.report.add("no weight", where, "all weights are 0; some row must count", "weight")
            return []
        means = []
        for task, total, of in zip(self.schema.tasks, sums.tolist(), weight.tolist(), strict=True):
            if of == 0:
                right = "no row of the training split with weight has a label; bring some, or leave the task out"
                self.report.add("no label", where, right, task)
                continue
            means.append(mean := total / of)
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
        # Bisection of all rows in lockstep: a key's events are sorted by time; the longest history takes most rounds.
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
    """For the progress bar; None if a file cannot be read, which its check will report."""
    try:
        total = 0
        for file in layout.files:
            with parquet_file(file) as parquet:
                total += parquet.metadata.num_rows
        return total
    except (pa.ArrowException, OSError):
        return None
