"""Damage of any kind, in any file of a sealed folder, is found."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from kunlun_jax.checksums import FILE, damage, is_sealed, seal


@pytest.fixture
def sealed(tmp_path) -> Path:
    folder = tmp_path / "sealed"
    (folder / "deep" / "deeper").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a", 1), ("deep/b", 5000), ("deep/deeper/c", 300), ("empty", 0)):
        (folder / name).write_bytes(rng.bytes(size))
    assert not is_sealed(folder)
    seal(folder)
    assert is_sealed(folder) and damage(folder) is None and damage(folder, trust_times=True) is None
    return folder


def flip(path: Path, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(bytes(data))


def cut(path: Path, rng: np.random.Generator) -> None:
    os.truncate(path, int(rng.integers(path.stat().st_size)))


def zero(path: Path, rng: np.random.Generator) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def lose(path: Path, rng: np.random.Generator) -> None:
    path.unlink()


@pytest.mark.parametrize("trust_times", [False, True])
@pytest.mark.parametrize("harm", [flip, cut, zero, lose])
def test_each_of_many_damages_is_found(harm, trust_times, sealed, tmp_path):
    files = [path.relative_to(sealed) for path in sorted(sealed.rglob("*")) if path.is_file() and path.stat().st_size]
    assert len(files) == 4
    for seed in range(60):
        rng = np.random.default_rng(seed)
        copy = tmp_path / f"{seed}"
        shutil.copytree(sealed, copy)
        name = files[seed % len(files)]
        harm(copy / name, rng)
        wrong = damage(copy, trust_times=trust_times)
        if name.name == FILE and (copy / FILE).exists() and wrong is None:
            # A bit that changed one blank into another.
            assert json.loads((copy / FILE).read_text()) == json.loads((sealed / FILE).read_text())
        else:
            assert wrong is not None and (name.as_posix() in wrong or FILE in wrong), (seed, name)
        shutil.rmtree(copy)


def test_what_kept_its_time_is_read_only_where_times_are_not_trusted(sealed):
    path = sealed / "deep" / "b"
    stat = path.stat()
    flip(path, np.random.default_rng(0))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert damage(sealed, trust_times=True) is None
    assert damage(sealed) == "deep/b was changed"


def test_a_copy_with_other_times_is_as_good(sealed, tmp_path):
    shutil.copytree(sealed, tmp_path / "copy", copy_function=shutil.copyfile)
    assert damage(tmp_path / "copy", trust_times=True) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3, "sha256": ""}', '{"files": {"a": 1}, "sha256": "x"}'])
def test_checksums_that_are_none_are_damage(text, sealed):
    (sealed / FILE).write_text(text)
    assert FILE in str(damage(sealed))
