"""A small prepared data set of random content, as plain Python values, and the Parquet that holds it."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kunlun_jax.data.schema import Categorical, EventType, Schema

SCHEMA = Schema(
    name="toy",
    categorical=(Categorical("user", 5), Categorical("item", 7, overflow="hash")),
    multi_valued=(Categorical("tags", 4), Categorical("words", 6, overflow="hash")),
    dense=("price",),
    events=(
        EventType("click", (Categorical("item", 7, overflow="hash"), Categorical("place", 3)), ("seconds",)),
        EventType("like", (Categorical("item", 7, overflow="hash"),)),
    ),
    tasks=("bought", "rated"),
    keys=("user_name", "request"),
    group="user_name",
)


@dataclasses.dataclass
class Tables:
    """Columns by name: per split, and per event type."""

    examples: dict[str, dict[str, Any]]
    events: dict[str, dict[str, Any]]
    schema: Schema = SCHEMA

    def write(self, root: Path, row_group: int = 7, files: int = 2) -> Path:
        """Writes the layout of a prepared data set to `root`, several files and row groups a table."""
        root.mkdir(parents=True, exist_ok=True)
        (root / "schema.json").write_text(self.schema.to_json())
        for folder, tables in (("examples", self.examples), ("events", self.events)):
            for name, columns in tables.items():
                write_table(root / folder / name, columns, row_group, files)
        return root


def write_table(folder: Path, columns: dict[str, Any], row_group: int = 7, files: int = 2) -> None:
    table = pa.table(columns)
    folder.mkdir(parents=True, exist_ok=True)
    bounds = np.linspace(0, table.num_rows, files + 1, dtype=int)
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        pq.write_table(table.slice(start, stop - start), folder / f"part-{number}.parquet", row_group_size=row_group)


def random_tables(rows: int = 60, events: int = 300, users: int = 6, seed: int = 0) -> Tables:
    """Users of whom some have no events, ids beyond the vocabularies, equal times, weights and delayed histories."""
    rng = np.random.default_rng(seed)
    examples = {}
    for number, split in enumerate(("train", "valid", "test")):
        request = np.sort(rng.integers(0, 100, rows)) + 1000 * number + 10**12
        user = rng.integers(0, users, rows)
        examples[split] = {
            "user": user,
            "item": rng.integers(0, 12, rows).astype(np.int32),
            "tags": [rng.integers(0, 6, rng.integers(0, 12)).tolist() for _ in range(rows)],
            "words": pa.array(
                [rng.integers(0, 9, rng.integers(0, 3)).tolist() for _ in range(rows)], pa.list_(pa.int16())
            ),
            "price": rng.normal(size=rows),
            "bought": rng.integers(0, 2, rows),
            "rated": rng.random(rows).astype(np.float32),
            "weight": rng.random(rows) + 0.5,
            "request_time_ms": request,
            "history_time_ms": request - rng.integers(0, 50, rows),
            "history_key": user,
            "user_name": [f"user {u} é" for u in user],
            "request": np.arange(rows) + 1000 * number,
        }
    types = {}
    for name in ("click", "like"):
        # The last user has no events, and there are events of a user without examples.
        key = rng.integers(0, users + 1, events)
        key = np.where(key == users - 1, users + 3, key)
        time = rng.integers(-800, 2200, events) + 10**12
        order = np.lexsort((time, key))
        types[name] = {"history_key": key[order], "time_ms": time[order], "item": rng.integers(0, 12, events)}
    types["click"] |= {"place": rng.integers(0, 4, events), "seconds": rng.normal(size=events).astype(np.float32)}
    return Tables(examples, types)
