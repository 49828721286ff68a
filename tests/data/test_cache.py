"""Prepared data is used as it was made or made again; what killed processes left is taken away, and only that."""

import fcntl
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kunlun_jax.checksums import FILE
from kunlun_jax.data.cache import build_once
from kunlun_jax.data.parquet.source import open_dataset
from tests.data.parquet.parquet_sets import random_tables
from tests.data.parquet.test_source import assert_same

INDEX, MOST = np.arange(180), {"click": 7, "like": 1000}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return random_tables().write(tmp_path_factory.mktemp("cache") / "data")


def harm(path: Path, number: int) -> None:
    """Of four kinds: a bit, zeros, half the file, no file."""
    data = bytearray(path.read_bytes())
    match number % 4:
        case 0:
            data[number * 37 % len(data)] ^= 1 << number % 8
            path.write_bytes(bytes(data))
        case 1:
            path.write_bytes(bytes(len(data)))
        case 2:
            path.write_bytes(bytes(data[: len(data) // 2]))
        case 3:
            path.unlink()


@pytest.mark.parametrize("kind", range(4))
def test_a_damaged_file_of_any_name_is_made_again(kind, root, tmp_path, caplog):
    whole = open_dataset(root, tmp_path).source.rows(INDEX, MOST)
    (folder,) = tmp_path.glob("*/")
    names = sorted(path.name for path in folder.iterdir())
    assert {"meta.json", "schema.json", "labels.npy", "history.0.start.npy"} < set(names)
    for number, name in enumerate(names):
        harm(folder / name, 4 * number + kind)
        caplog.clear()
        dataset = open_dataset(root, tmp_path)
        assert_same(dataset.source.rows(INDEX, MOST), whole)
        (line,) = caplog.messages
        assert str(folder) in line and "is made again" in line and (name in line or FILE in line)
        assert list(tmp_path.glob("*/")) == [folder]
    assert sorted(path.name for path in folder.iterdir()) == names
    caplog.clear()
    open_dataset(root, tmp_path)
    assert caplog.messages == []


KILLED = """
import os, pathlib, signal, sys
from kunlun_jax.data.cache import build_once
def make(work):
    (work / "half.npy").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
build_once(pathlib.Path(sys.argv[1]), make)
"""


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_living_one_makes_is_not(tmp_path, caplog):
    for name in ("one", "two"):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path / name)],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            timeout=60,
        )
        assert killed.returncode == -signal.SIGKILL
        # The second one takes away what the first left.
        (left,) = tmp_path.glob(".*/new/half.npy")
        assert left.parents[1].name.startswith(f".{name}-")
    living = tmp_path / ".three-x"
    living.mkdir()
    with (living / ".lock").open("w") as lock, caplog.at_level(logging.INFO):
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert build_once(tmp_path / "one", lambda work: (work / "whole.npy").write_bytes(b"whole") > 0)
        assert sorted(path.name for path in tmp_path.iterdir()) == [".three-x", "one"]
    assert (tmp_path / "one" / "whole.npy").read_bytes() == b"whole"
    assert caplog.messages == []


def test_nothing_is_left_of_what_was_given_up(tmp_path):
    def fail(work: Path) -> bool:
        (work / "x").write_text("x")
        raise KeyError("x")

    with pytest.raises(KeyError):
        build_once(tmp_path / "a", fail)
    assert not build_once(tmp_path / "a", lambda work: False)
    assert list(tmp_path.iterdir()) == []


def test_another_process_that_was_faster_is_believed(tmp_path):
    def make(work: Path) -> bool:
        (work / "x").write_text("mine")
        assert build_once(tmp_path / "a", lambda other: (other / "x").write_text("theirs") > 0)
        return True

    assert build_once(tmp_path / "a", make)
    assert (tmp_path / "a" / "x").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
