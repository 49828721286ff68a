"""Rows of results: several writers, runs that are kept until their row is stored, and what tells runs apart."""

import threading
import time

import pytest

from experiments import result_rows
from kunlun_jax.training.run_directory import RunInUse


def test_two_runs_may_store_into_one_file_at_once(tmp_path, monkeypatch):
    written = result_rows.write_atomic

    def slow(path, text):
        time.sleep(0.05)
        written(path, text)

    monkeypatch.setattr(result_rows, "write_atomic", slow)
    path = tmp_path / "rows.json"
    threads = [
        threading.Thread(target=result_rows.store, args=(path, {"n": n}, lambda row: (row["n"],))) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert result_rows.stored(path) == [{"n": n} for n in range(4)]


def test_a_run_is_kept_until_its_row_is_stored_and_its_seconds_with_it(tmp_path, monkeypatch):
    folder = result_rows.run_folder(
        {"name": "a, b", "flags": "kunlun/small", "data": "d", "seed": 3}, tmp_path / "toy", "c" * 40
    )
    assert (
        folder.parent == tmp_path and folder.name.startswith("toy-a-b-") and folder.name.endswith("-d-seed3-cccccccccc")
    )
    row, key, path = {"n": 1}, lambda row: (row["n"],), tmp_path / "rows.json"

    def trained():
        folder.mkdir(exist_ok=True)
        time.sleep(0.2)
        return {"found": 1}

    def full(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(result_rows, "store", full)
        with pytest.raises(OSError, match="no space"):
            result_rows.add(path, row, key, {}, trained, folder)
    assert folder.exists() and not path.exists()
    assert result_rows.add(path, row, key, {}, trained, folder)["seconds"] >= 0.4
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.json"]


def test_a_run_that_another_call_is_at_is_left_to_it_and_one_that_it_has_done_is_not_repeated(tmp_path):
    row, key, path, folder = {"n": 1}, lambda row: (row["n"],), tmp_path / "rows.json", tmp_path / "run"
    calls = []

    def trained():
        calls.append(1)
        folder.mkdir(exist_ok=True)
        if len(calls) == 1:
            with pytest.raises(RunInUse, match="run is in use by another call"):
                result_rows.add(path, row, key, {}, trained, folder)
        time.sleep(0.1)
        return {"found": 1}

    found = result_rows.add(path, row, key, {}, trained, folder)
    assert found["seconds"] >= 0.1 and calls == [1]
    assert result_rows.add(path, row, key, {}, trained, folder) == found == result_rows.stored(path)[0]
    assert calls == [1] and [entry.name for entry in tmp_path.iterdir()] == ["rows.json"]


def test_a_claim_of_a_file_that_was_deleted_meanwhile_is_made_anew(tmp_path, monkeypatch):
    folder, locks = tmp_path / "run", []

    def flock(file, how):
        """Before the first lock another call ends, and deletes the file."""
        locks.append(file)
        if len(locks) == 1:
            (tmp_path / "run.seconds").unlink()

    monkeypatch.setattr(result_rows.fcntl, "flock", flock)
    with result_rows._claimed(folder) as file:
        assert len(locks) == 2 and file is locks[1] and locks[0].closed


def test_runs_of_other_flags_and_of_code_with_changes_have_folders_of_their_own(tmp_path):
    row, commit = {"name": "a", "flags": "x", "data": "d", "seed": 0}, "0123456789abcdef"
    rows_of = [(row, commit), (row | {"flags": "y"}, commit), (row, f"{commit}+changes"), (row | {"seed": 1}, commit)]
    assert len({result_rows.run_folder(row, tmp_path / "toy", commit) for row, commit in rows_of}) == 4
