"""The files of a prepared data set, as they are written and found: every one is read, or refused by its name."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from kunlun_jax.data.parquet.report import Report
from kunlun_jax.data.schema import Schema

FIRST_SPLITS = ("train", "valid", "test")
RESERVED_EXAMPLE_COLUMNS = ("request_time_ms", "history_time_ms", "weight")
RESERVED_EVENT_COLUMNS = ("time_ms",)
_PARTITION = re.compile(r"([^=]+)=(.*)")
_DEPTH = 8
"""Folders below that of a split or an event type."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The files of a data set: its schema, and per split and event type the Parquet files in order."""

    root: Path
    schema: Schema
    examples: dict[str, list[Path]]
    events: dict[str, list[Path]]

    @property
    def files(self) -> list[Path]:
        """All Parquet files."""
        return [file for files in (*self.examples.values(), *self.events.values()) for file in files]


def write_layout(
    root: Path, schema: Schema, examples: Mapping[str, pa.Table], events: Mapping[str, pa.Table], row_group: int = 65536
) -> None:
    """Writes a data set into `root`: examples by split and events by type, a file each, and ``schema.json``."""
    for kind, tables in (("examples", examples), ("events", events)):
        for name, table in tables.items():
            (root / kind / name).mkdir(parents=True)
            path = root / kind / name / "part-00000.parquet"
            pq.write_table(table, path, row_group_size=row_group, compression="zstd")
    (root / "schema.json").write_text(schema.to_json())


def find_layout(root: Path, report: Report) -> Layout | None:
    """The files of the data set in `root`; None if there is no schema to check them against."""
    if not root.is_dir():
        report.add("no data set", root, "no such folder; give the one that holds schema.json, examples/ and events/")
        return None
    try:
        schema = Schema.read(root / "schema.json")
    except ValueError as error:
        report.add("schema", root / "schema.json", str(error).removeprefix(f"{root / 'schema.json'}: "))
        return None
    _check_names(schema, root / "schema.json", report)
    for kind in ("examples", "events"):
        _refuse_loose(root / kind, report)
    examples = {split: _parquet_files(root / "examples" / split, report) for split in _folders(root / "examples")}
    if "train" not in examples:
        right = f"no folder 'train', only {sorted(examples)}; examples of the training split belong there"
        report.add("no train split", root / "examples", right)
    order = [s for s in FIRST_SPLITS if s in examples] + sorted(set(examples) - set(FIRST_SPLITS))
    types = [event.name for event in schema.events]
    for extra in sorted(set(_folders(root / "events")) - set(types)):
        right = f"the schema has no event type {extra!r}, it has {types}; add it to schema.json or remove the folder"
        report.add("unknown event type", root / "events" / extra, right)
    events = {name: _parquet_files(root / "events" / name, report) for name in types}
    return Layout(root, schema, {split: examples[split] for split in order}, events)


def partition(file: Path, root: Path) -> dict[str, str | None]:
    """Columns that the folders above a file spell out, such as ``date=2026-01-02``; None for Hive's name of a null."""
    found = (_PARTITION.fullmatch(name) for name in file.relative_to(root).parts[:-1])
    pairs = ((match[1], unquote(match[2])) for match in found if match)
    return {name: None if value == "__HIVE_DEFAULT_PARTITION__" else value for name, value in pairs}


def _check_names(schema: Schema, file: Path, report: Report) -> None:
    features = [f.name for f in schema.categorical + schema.multi_valued] + list(schema.dense) + list(schema.tasks)
    for name in sorted(set(features) & set(RESERVED_EXAMPLE_COLUMNS)):
        report.add(
            "reserved name", file, f"{name!r} is a feature or task; that column has its own meaning, rename it", name
        )
    for event in schema.events:
        if Path(event.name).name != event.name:
            report.add("event type name", file, f"event type {event.name!r} must be usable as a folder name")
        fields = [f.name for f in event.categorical] + list(event.dense)
        for name in sorted(set(fields) & set(RESERVED_EVENT_COLUMNS)):
            right = f"{name!r} is a field of event type {event.name!r}; that column has its own meaning, rename it"
            report.add("reserved name", file, right, name)
    try:
        schema.with_indicators()
    except ValueError as error:
        right = f'with NAME_is_null beside each column NAME whose nulls are an "indicator", {error}; rename yours'
        report.add("schema", file, right)
    for table in schema.tables.values():
        if table.rows >= 2**31:
            right = f"table {table.name!r} has {table.rows} rows; table rows are int32, give less than {2**31}"
            report.add("table size", file, right)


def _folders(path: Path) -> list[str]:
    """Names of the folders in a folder, but for those that other programs leave there, as Spark's ``_temporary``."""
    return sorted(p.name for p in path.iterdir() if p.is_dir() and p.name[0] not in "._") if path.is_dir() else []


def _refuse_loose(folder: Path, report: Report) -> None:
    """Refuses Parquet files beside the folders in which they are looked for."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix.lower() == ".parquet" and path.name[0] not in "._" and not path.is_dir():
            report.add("loose file", path, f"it lies beside the folders of {folder.name}; move it into one of them")


def _parquet_files(folder: Path, report: Report) -> list[Path]:
    """All Parquet files in a folder and the folders below, in the order of their paths."""
    if not folder.is_dir():
        report.add("missing folder", folder, "no such folder; Parquet files of the schema's event type belong there")
        return []
    return _files_below(folder, report, _DEPTH)


def _files_below(folder: Path, report: Report, depth: int) -> list[Path]:
    found, shown = [], [path for path in sorted(folder.iterdir()) if path.name[0] not in "._"]
    for path in shown:
        if path.is_dir() and depth:
            found += _files_below(path, report, depth - 1)
        elif path.is_dir():
            report.add("deep folder", path, f"it lies more than {_DEPTH} folders deep; is it a link to one above?")
        elif not path.is_file():
            report.add("no file", path, "it is a link to nothing, or no file; remove it, or write it again")
        elif path.suffix.lower() == ".parquet":
            found.append(path)
        else:
            right = "its name does not end in .parquet; rename it, or put a dot or an underscore before what is no data"
            report.add("other file", path, right)
    if not shown:
        report.add("no files", folder, "no *.parquet file in this folder; one without rows is enough")
    return found
