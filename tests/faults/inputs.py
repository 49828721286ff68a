"""``python -m tests.faults.inputs KIND FIRST LAST FOLDER``: damaged inputs of a kind, FIRST to LAST - 1, each tried.

For each one the reader must give what it gave before, or a clear error: a ValueError, KeyError or OSError that names
the file, as the commands print in one line. Anything else is a failure: another exception, other values, a hang, or
more memory than the process is given. Prints JSON: how many were read as before, how many refused, and the failures.
"""

import json
import resource
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from kunlun_jax.data.parquet.source import open_dataset
from kunlun_jax.data.schema import Schema
from kunlun_jax.training import json_lines
from kunlun_jax.training.checkpoint import Checkpoints
from kunlun_jax.training.run_directory import RunDirectory
from tests.data.parquet.parquet_sets import random_tables
from tests.faults.damage import damage

REFUSED = (ValueError, KeyError, OSError)
MEMORY = 6 << 30
"""Bytes of address space; JAX and pyarrow map some two gigabytes."""
INDEX, MOST = np.arange(180), {"click": 9, "like": 9}


def leaves(value: Any) -> list[np.ndarray]:
    """The arrays of nested rows."""
    if isinstance(value, np.ndarray):
        return [value]
    return [leaf for part in (value if isinstance(value, dict) else vars(value)).values() for leaf in leaves(part)]


def all_rows(root: Path, cache: Path) -> list[np.ndarray]:
    """Every row of a data set, with its keys."""
    source = open_dataset(root, cache).source
    return leaves(source.rows(INDEX, MOST)) + list(source.keys(INDEX).values())


def same(got: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    """Whether all values are equal."""
    return len(got) == len(expected) and all(map(np.array_equal, got, expected))


class Parquet:
    """The files of a data set, written with checksums of their pages."""

    def __init__(self, folder: Path):
        self.root = random_tables().write(folder / "data")
        for path in self.root.rglob("*.parquet"):
            pq.write_table(pq.read_table(path), path, row_group_size=7, write_page_checksum=True)
        self.expected = all_rows(self.root, folder / "cache")
        self.files = sorted(self.root.rglob("*.parquet"))

    def read(self, work: Path) -> bool:
        """Whether the damaged copy in `work` reads as before."""
        return same(all_rows(work, work.with_name("cache")), self.expected)


class SchemaJson(Parquet):
    """schema.json: other valid words are another schema, so only that a schema comes of it is asked."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.files = [self.root / "schema.json"]

    def read(self, work: Path) -> bool:
        """As `Parquet.read`."""
        open_dataset(work, work.with_name("cache"))
        Schema.read(work / "schema.json")
        return True


class Cache:
    """Prepared columns: they are made again, so nothing is ever refused."""

    def __init__(self, folder: Path):
        self.data = random_tables().write(folder / "data")
        self.root = folder / "cache"
        self.expected = all_rows(self.data, self.root)
        self.files = sorted(path for path in self.root.rglob("*") if path.is_file() and path.stat().st_size)

    def read(self, work: Path) -> bool:
        """As `Parquet.read`."""
        try:
            return same(all_rows(self.data, work), self.expected)
        except REFUSED as error:
            raise AssertionError(f"refused: {error}") from error


class Checkpoint:
    """Two steps; the newest sound one is used, and what it holds is what was saved."""

    def __init__(self, folder: Path):
        # Here, since JAX need not start for the other kinds.
        from tests.training.test_checkpoint import POSITION, host_copy, make_state

        self.abstract, self.root = make_state, folder / "checkpoints"
        self.expected = {step: leaves_of(host_copy(make_state(step))) for step in (1, 2)}
        checkpoints = Checkpoints(self.root)
        for step in (1, 2):
            checkpoints.save(step, make_state(step), POSITION | {"at": step})
        checkpoints.close()
        self.files = sorted(path for path in (self.root / "2").rglob("*") if path.is_file() and path.stat().st_size)

    def read(self, work: Path) -> bool:
        """Whether the state and position that are found are of one step, as it was saved."""
        import jax

        checkpoints = Checkpoints(work)
        try:
            step = checkpoints.latest()
            assert step is not None
            state, position = checkpoints.restore(step, jax.eval_shape(self.abstract))
            return position["at"] == step and same(leaves_of(state), self.expected[step])
        finally:
            checkpoints.close()


def leaves_of(state: Any) -> list[np.ndarray]:
    """The arrays of a training state on the host."""
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


class Metrics:
    """metrics.jsonl: its lines are read as they were written, or the one that is not is named. Its end may be lost."""

    def __init__(self, folder: Path):
        self.root = folder / "run"
        directory = RunDirectory(self.root, {"a": 1})
        for step in range(3, 60, 3):
            directory.log(kind="train", step=step, ne=1 / step, note="é")
            directory.log(kind="eval", step=step, split="valid", auc=0.5 + step / 200)
        self.expected = [line for line in json_lines.read(directory.metrics) if line["step"] <= 30]
        self.files = [directory.metrics]

    def read(self, work: Path) -> bool:
        """Whether a run could go on with it."""
        directory = RunDirectory(work, {"a": 1})
        directory.truncate_lines(30)
        directory.warn_of_lost_lines(30, 3)
        directory.evaluated(30)
        found = json_lines.read(directory.metrics)
        return found == self.expected[: len(found)]


class Config(Metrics):
    """config.json of a run: it is as before, or another one, and that is said."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.files = [self.root / "config.json"]


KINDS: dict[str, Callable[[Path], Any]] = {
    "parquet": Parquet,
    "schema": SchemaJson,
    "cache": Cache,
    "checkpoint": Checkpoint,
    "metrics": Metrics,
    "config": Config,
}


def attempt(kind: Any, number: int, folder: Path) -> tuple[str, str]:
    """Damages a copy and reads it: ("same" | "refused" | "failed", what happened)."""
    work = folder / "work" / kind.root.name
    shutil.rmtree(folder / "work", ignore_errors=True)
    shutil.copytree(kind.root, work)
    name = kind.files[number % len(kind.files)].relative_to(kind.root)
    what = f"{number}: {damage(work / name, number)} of {name}"
    try:
        return ("same", what) if kind.read(work) else ("failed", f"{what}: other values")
    except REFUSED as error:
        named = str(work) in str(error)
        return "refused" if named else "failed", f"{what}: {type(error).__name__}: {error}"
    except Exception as error:
        return "failed", f"{what}: {type(error).__name__}: {error}"


def main(name: str, first: str, last: str, where: str) -> int:
    """Tries them; see the module."""
    folder = Path(where)
    kind = KINDS[name](folder)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    found = [attempt(kind, number, folder) for number in range(int(first), int(last))]
    counts = {outcome: sum(o == outcome for o, _ in found) for outcome in ("same", "refused", "failed")}
    print(json.dumps(counts | {"failures": [what for outcome, what in found if outcome == "failed"][:10]}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
