"""Compiled programs are kept where other clones find them, and not for ever."""

import os
import time
from pathlib import Path

from tests import compiled


def test_programs_are_kept_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiled.folder().parent == tmp_path / "kunlun_jax" / "tests" and compiled.folder().is_dir()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compiled.folder().parent == tmp_path / ".cache" / "kunlun_jax" / "tests"


def test_without_such_a_folder_they_are_kept_here(tmp_path, monkeypatch):
    (tmp_path / "kunlun_jax").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiled.folder() == Path(__file__).resolve().parents[1] / ".pytest_cache" / "jax"


def test_only_old_ones_are_removed(tmp_path):
    for name, age in (("old", 1.1), ("new", 0.9)):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (time.time() - age * compiled.KEPT_S,) * 2)
    compiled.remove_old(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    compiled.remove_old(tmp_path / "nothing")
