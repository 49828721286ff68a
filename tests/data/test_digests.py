"""A file's digest is that of what it holds now; what has not changed is not read again."""

import hashlib
import json
import logging
import os
import time
from pathlib import Path

import pytest

import kunlun_jax.data.digests as module
from kunlun_jax.data.digests import FILE, digests
from tests.faults.damage import WAYS, damage


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def files(tmp_path, monkeypatch) -> list[Path]:
    """Three files, written long ago."""
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path in paths:
        path.write_text(path.name * 100)
    monkeypatch.setattr(module, "_SETTLED_NS", -1)
    return paths


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Names of the files that are read."""
    names, real = [], hashlib.file_digest
    monkeypatch.setattr(
        module.hashlib, "file_digest", lambda file, kind: (names.append(Path(file.name).name), real(file, kind))[1]
    )
    return names


def test_only_what_changed_is_read(files, tmp_path, read):
    cache = tmp_path / "cache"
    assert digests(files, cache) == [sha(path) for path in files]
    assert read == ["a", "b", "c"]
    assert digests(files[::-1], cache) == [sha(path) for path in files[::-1]]
    assert read == ["a", "b", "c"]
    # The same size and time of modification: only the time of change tells.
    before = files[1].stat()
    files[1].write_text("x" * 100)
    os.utime(files[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digests(files, cache) == [sha(path) for path in files]
    assert read == ["a", "b", "c", "b"]
    # Exchanged for another file.
    (tmp_path / "new").write_text("y" * 100)
    (tmp_path / "new").rename(files[2])
    assert digests(files, cache)[2] == sha(files[2])
    files[0].unlink()
    assert digests(files[2:], cache) == [sha(files[2])]
    assert read == ["a", "b", "c", "b", "c"]


def test_a_file_that_was_just_written_is_read_again(files, tmp_path, read, monkeypatch):
    monkeypatch.setattr(module, "_SETTLED_NS", 2_000_000_000)
    digests(files, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    now = time.time_ns()
    monkeypatch.setattr(module.time, "time_ns", lambda: now + 3_000_000_000)
    digests(files, tmp_path / "cache")
    digests(files, tmp_path / "cache")
    assert read == ["a", "b", "c"] * 2


@pytest.mark.parametrize("seed", range(4 * len(WAYS)))
def test_a_damaged_memory_never_gives_another_digest(seed, files, tmp_path, read):
    cache = tmp_path / "cache"
    digests(files, cache)
    whole = json.loads((cache / FILE).read_text())
    way = damage(cache / FILE, seed)
    assert digests(files, cache) == [sha(path) for path in files], way
    if read == ["a", "b", "c"]:  # not read again, so what was damaged says the same
        assert json.loads((cache / FILE).read_text()) == whole
    again = len(read)
    assert digests(files, cache) == [sha(path) for path in files], way
    assert len(read) == again


def test_a_folder_that_cannot_be_written_only_costs_time(files, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.INFO):
        assert digests(files, tmp_path / "cache") == [sha(path) for path in files]
    assert "cannot be written" in caplog.text
