"""The loader: order, slices, state, cuts and workers."""

import dataclasses
import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from kunlun_jax.data import pipeline
from kunlun_jax.data.dataset import Dataset
from kunlun_jax.data.pack import Counts, pack
from kunlun_jax.data.parquet.source import open_dataset
from kunlun_jax.data.pipeline import LoaderConfig, capacities, make_loader
from pallas_kernels.jagged import aligned
from tests import processes
from tests.data.parquet.parquet_sets import random_tables

CONFIG = LoaderConfig(batch_size=16)
SHUFFLED = LoaderConfig(batch_size=16, shuffle="global")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    root = tmp_path_factory.mktemp("pipeline")
    return open_dataset(random_tables(rows=100).write(root / "data"), root / "cache")


def same(a, b) -> None:
    """Two lists of ``(Batch, Counts)``, to the bit."""
    assert len(a) == len(b)
    for (batch, counts), (other, other_counts) in zip(a, b, strict=True):
        assert counts == other_counts
        assert jax.tree.structure(batch) == jax.tree.structure(other)
        for x, y in zip(jax.tree.leaves(batch), jax.tree.leaves(other), strict=True):
            assert type(x) is np.ndarray
            np.testing.assert_array_equal(x, y, strict=True)


def rows_of(batches) -> np.ndarray:
    return np.concatenate([batch.row for batch, _ in batches])


def test_batches_are_the_packed_rows_in_time_order(dataset):
    with make_loader(dataset, "valid", CONFIG, epochs=2) as loader:
        assert loader.batches_per_epoch == 7
        assert len(loader) == 14
        batches = list(loader)
    expected, most = [], {"click": 1000, "like": 1000}
    for start in list(range(100, 200, 16)) * 2:
        rows = dataset.source.rows(np.arange(start, min(start + 16, 200)), most)
        expected.append(pack(dataset.schema, rows, 16, loader.capacity))
    same(batches, expected)
    last, counts = batches[6]
    assert last.row.tolist() == [196, 197, 198, 199] + [-1] * 12
    assert last.weights[4:].tolist() == [0] * 12
    assert (counts.examples, counts.filled) == (4, 12)
    total = sum((counts for _, counts in batches), Counts())
    assert (total.examples, total.filled) == (200, 24)


def test_the_end_stays_the_end(dataset):
    loader = make_loader(dataset, "train", CONFIG)
    assert len(list(loader)) == 7
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(loader)


def test_global_shuffle_is_a_new_permutation_each_epoch_and_the_same_for_a_seed(dataset):
    def epochs(seed: int) -> list[list[int]]:
        with make_loader(dataset, "train", SHUFFLED, epochs=3, seed=seed) as loader:
            rows = rows_of(list(loader))
        return [[row for row in part if row >= 0] for part in np.split(rows, 3)]

    first, again, other = epochs(5), epochs(5), epochs(6)
    assert first == again
    assert all(sorted(order) == list(range(100)) for order in first + other)
    assert len({tuple(order) for order in [*first, *other, range(100)]}) == 7


@pytest.mark.parametrize("config", [CONFIG, SHUFFLED], ids=["time", "shuffled"])
def test_processes_share_batches_and_change_nothing(dataset, config):
    """Each has its run of the shares that one process would pack, and of a batch every example is in one share."""
    with make_loader(dataset, "test", config, epochs=2, seed=3) as loader:
        undivided = [batch for batch, _ in loader]
    with make_loader(dataset, "test", config, epochs=2, seed=3, share_count=4) as loader:
        whole, capacity = list(loader), loader.capacity
    parts, own = [], {"process_count": 2, "share_count": 4}
    for process in range(2):
        with make_loader(dataset, "test", config, epochs=2, seed=3, process_index=process, **own) as loader:
            assert loader.capacity == capacity == capacities(dataset, ["test"], config, epochs=2, seed=3, share_count=4)
            parts.append(list(loader))
    for (batch, counts), at_once, *pieces in zip(whole, undivided, *parts, strict=True):
        leaves = zip(*(jax.tree.leaves(piece) for piece in (batch, *(piece for piece, _ in pieces))), strict=True)
        for together, *apart in leaves:
            np.testing.assert_array_equal(np.concatenate(apart), together, strict=True)
        np.testing.assert_array_equal(np.sort(batch.row), np.sort(at_once.row))
        total = sum((counts for _, counts in pieces), Counts())
        assert {part.events_of_fullest for _, part in pieces} == {counts.events_of_fullest}
        assert dataclasses.replace(total, events_of_fullest=counts.events_of_fullest) == counts


def test_processes_and_threads_of_workers_change_nothing(dataset):
    with make_loader(dataset, "train", SHUFFLED, epochs=2, seed=3) as loader:
        alone = list(loader)
    for change in ({"workers": 1}, {"workers": 2, "prefetch": 1}, {"threads": 3}, {"prefetch": 7}):
        with make_loader(dataset, "train", dataclasses.replace(SHUFFLED, **change), epochs=2, seed=3) as loader:
            same(list(loader), alone)


@pytest.mark.parametrize("at", [0, 1, 5, 7, 9, 14])
def test_a_restored_loader_goes_on_to_the_bit(dataset, at):
    with make_loader(dataset, "train", SHUFFLED, epochs=2, seed=1) as loader:
        first = [next(loader) for _ in range(at)]
        state = json.loads(json.dumps(loader.get_state()))
        rest = list(loader)
    assert len(first) + len(rest) == 14
    config = dataclasses.replace(SHUFFLED, threads=2, prefetch=4)  # how batches are made may change meanwhile
    with make_loader(dataset, "train", config, epochs=2, seed=1) as other:
        other.set_state(state)
        assert other.position == at
        same(list(other), rest)


def test_a_running_loader_goes_back_with_workers(dataset):
    config = dataclasses.replace(SHUFFLED, workers=1)
    with make_loader(dataset, "train", config, epochs=2, seed=1) as loader:
        for _ in range(3):
            next(loader)
        state = loader.get_state()
        following = [next(loader) for _ in range(3)]
        loader.set_state(state)
        assert loader.get_state() == state
        same([next(loader) for _ in range(3)], following)


def test_a_state_of_something_else_is_refused(dataset):
    loader = make_loader(dataset, "train", SHUFFLED, epochs=2, seed=1)
    state = loader.get_state()
    for name, value in {
        "fingerprint": "other",
        "split": "test",
        "batch_size": 32,
        "shuffle": "none",
        "seed": 2,
    }.items():
        with pytest.raises(
            ValueError, match=f"loader state has {name} {value!r}, this loader {state[name]!r}; they must"
        ):
            loader.set_state(state | {name: value})
    with pytest.raises(ValueError, match="next_batch 15; it must be from 0 to 14"):
        loader.set_state(state | {"next_batch": 15})
    with pytest.raises(ValueError, match=re.escape("loader state has the fields ['next_batch']")):
        loader.set_state({"next_batch": 0})


def uncut_lengths(dataset: Dataset, event: str) -> np.ndarray:
    return dataset.source.history_lengths(np.arange(100), event)


def test_max_events_cuts_and_counts(dataset):
    config = LoaderConfig(batch_size=16, max_events=10, max_events_of=(("like", 3),))
    with make_loader(dataset, "train", config) as loader:
        batches = list(loader)
    total = sum((counts for _, counts in batches), Counts())
    for event, most in (("click", 10), ("like", 3)):
        lengths = uncut_lengths(dataset, event)
        assert total.events[event] == np.minimum(lengths, most).sum()
        assert total.events_cut[event] == np.maximum(lengths - most, 0).sum() > 0
        assert total.events_cut_by_capacity[event] == 0
        assert max(batch.events[event].lengths.max() for batch, _ in batches) == most


def test_auto_capacity_is_the_fullest_batch(dataset, monkeypatch):
    monkeypatch.setattr(pipeline, "CAPACITY_MULTIPLE", 8)
    capacity = capacities(dataset, ["train"], CONFIG)
    rows = dataset.source.rows(np.arange(100), {"click": 0, "like": 0})
    lengths = {event: uncut_lengths(dataset, event) for event in ("click", "like")}
    lengths |= {name: np.diff(ragged.splits) for name, ragged in rows.multi_valued.items()}
    expected = {name: max(int(aligned(n[s : s + 16]).sum()) for s in range(0, 100, 16)) for name, n in lengths.items()}
    assert capacity == expected
    with make_loader(dataset, "train", CONFIG) as loader:
        total = sum((counts for _, counts in loader), Counts())
    assert set(total.events_cut_by_capacity.values()) | set(total.items_cut_by_capacity.values()) == {0}
    with make_loader(dataset, "train", CONFIG, capacity=capacity | {"click": capacity["click"] - 8}) as loader:
        total = sum((counts for _, counts in loader), Counts())
    assert total.events_cut_by_capacity["click"] > 0, "8 rows less must cut"


def test_auto_capacity_is_that_of_the_fullest_batch_of_all_epochs_in_their_order(dataset, monkeypatch):
    monkeypatch.setattr(pipeline, "CAPACITY_MULTIPLE", 8)
    capacity = capacities(dataset, ["train", "valid"], SHUFFLED, epochs=3, seed=9)
    used = dict.fromkeys(capacity, 0)
    for split in ("train", "valid"):
        with make_loader(dataset, split, SHUFFLED, epochs=3, seed=9, capacity=capacity) as loader:
            for batch, counts in loader:
                assert set(counts.events_cut_by_capacity.values()) == {0}
                assert set(counts.items_cut_by_capacity.values()) == {0}
                for name, jagged in (batch.events | batch.multi_valued).items():
                    used[name] = max(used[name], int(jagged.row_splits[-1]))
    assert used == capacity


def test_capacities_are_multiples_of_128_and_can_be_bounded(dataset):
    capacity = capacities(dataset, ["train"], CONFIG)
    assert all(rows % 128 == 0 and rows > 0 for rows in capacity.values())
    bounded = capacities(dataset, ["train"], dataclasses.replace(CONFIG, max_rows_per_example=8))
    assert bounded == {"click": 128, "like": 128, "tags": 128, "words": 128}
    assert capacity["click"] > 128
    with make_loader(dataset, "train", dataclasses.replace(CONFIG, max_rows_per_example=8)) as loader:
        assert loader.capacity == bounded
        total = sum((counts for _, counts in loader), Counts())
    lengths = uncut_lengths(dataset, "click")
    assert total.events_cut_by_capacity["click"] == lengths.sum() - total.events["click"] > 0


def test_a_bound_that_may_leave_no_event_at_all_is_refused():
    for rows in (1, 7):
        with pytest.raises(ValueError, match=rf"loader\.max_rows_per_example is {rows}; it must be 0 .* or at least 8"):
            LoaderConfig(max_rows_per_example=rows)
    for rows in (0, 8):
        assert LoaderConfig(max_rows_per_example=rows).max_rows_per_example == rows


def test_large_splits_are_sampled_with_a_margin(dataset, monkeypatch, caplog):
    monkeypatch.setattr(pipeline, "CAPACITY_MULTIPLE", 8)
    exact = capacities(dataset, ["train"], SHUFFLED)
    monkeypatch.setattr(pipeline, "EXACT_ROWS", 50)
    monkeypatch.setattr(pipeline, "SAMPLE_ROWS", 16 * 85)  # every start there is
    with caplog.at_level(logging.INFO, logger="kunlun_jax.data.pipeline"):
        sampled = capacities(dataset, ["train"], SHUFFLED)
    assert "split 'train' has 100 rows: capacities are estimated from 85 batches with a margin of 10%" in caplog.text
    assert all(sampled[name] >= exact[name] * 1.1 for name in exact)
    assert all(sampled[name] <= exact[name] * 1.1 * 1.5 for name in exact)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "loader.batch_size is 0; it must be at least 1"),
        ({"max_events": 0}, "loader.max_events is 0; it must be at least 1"),
        ({"workers": -1}, "loader.workers is -1; it must be at least 0"),
        ({"prefetch": 0}, "loader.prefetch is 0; it must be at least 1"),
        ({"shuffle": "local"}, "loader field 'shuffle' is 'local'; use 'none' or 'global'"),
        ({"max_events_of": (("click", 0),)}, "loader field 'max_events_of' gives 'click' 0 events; give at least 1"),
    ],
)
def test_wrong_fields_are_named(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LoaderConfig(**change)


def test_wrong_arguments_are_named(dataset):
    with pytest.raises(ValueError, match="batch_size 16 must be a multiple of 3, the number of devices that share it"):
        make_loader(dataset, "train", CONFIG, share_count=3)
    with pytest.raises(ValueError, match="share_count is 1; it must be a multiple of process_count 2"):
        make_loader(dataset, "train", CONFIG, process_count=2)
    with pytest.raises(ValueError, match="process_index is 2; it must be from 0 to 1"):
        make_loader(dataset, "train", CONFIG, process_index=2, process_count=2)
    with pytest.raises(ValueError, match="epochs is 0; it must be at least 1"):
        make_loader(dataset, "train", CONFIG, epochs=0)
    with pytest.raises(KeyError, match="no split 'dev'"):
        make_loader(dataset, "dev", CONFIG)
    with pytest.raises(ValueError, match=re.escape("'max_events_of' names ['order']; schema 'toy' has event types")):
        make_loader(dataset, "train", LoaderConfig(max_events_of=(("order", 5),)))
    empty = dataclasses.replace(dataset, splits=dataset.splits | {"none": range(5, 5)})
    with pytest.raises(ValueError, match="split 'none' of data set 'toy' has no rows"):
        make_loader(empty, "none", CONFIG)
    with pytest.raises(ValueError, match="split 'none' of data set 'toy' has no rows"):
        capacities(empty, tuple(empty.splits), CONFIG)


def test_an_error_in_a_worker_comes_out(dataset):
    broken = dict.fromkeys(("click", "like", "tags"), 8)  # packing will refuse it
    for workers in (0, 1):
        config = dataclasses.replace(CONFIG, workers=workers)
        with (
            make_loader(dataset, "train", config, capacity=broken | {"words": 12}) as loader,
            pytest.raises(ValueError, match="capacity of 'words' is 12 rows"),
        ):
            next(loader)


def test_too_little_shared_memory_is_said_before_a_worker_dies_of_it(dataset, monkeypatch):
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**20})())
    monkeypatch.setattr(pipeline, "_SHARED_MEMORY", Path("/"))
    config = dataclasses.replace(CONFIG, workers=2)
    capacity = capacities(dataset, ["train"], CONFIG) | {"click": 128_000}
    with pytest.raises(RuntimeError, match=r"/ has 1 MiB free, but 7 batches of 2 workers need 1\d; allow more"):
        next(make_loader(dataset, "train", config, capacity=capacity))


SCRIPT = """
    import multiprocessing, sys
    from pathlib import Path
    from kunlun_jax.data.parquet.source import open_dataset
    from kunlun_jax.data.pipeline import LoaderConfig, make_loader

    if __name__ == "__main__":
        dataset = open_dataset(Path(sys.argv[1]), Path(sys.argv[2]))
        loader = make_loader(dataset, "train", LoaderConfig(batch_size=16, workers=1), epochs=1000)
        next(loader)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        sys.stdin.readline()
        for _ in range(50):
            next(loader)
        loader.close()
        print("closed", flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def script(dataset, tmp_path):
    """A process with a loader and one worker that has printed the worker's number and waits for a line."""
    file = tmp_path / "script.py"
    file.write_text(textwrap.dedent(SCRIPT))
    data = random_tables(rows=100).write(tmp_path / "data")
    arguments = [sys.executable, str(file), str(data), str(tmp_path / "cache")]
    with processes.Process(arguments, stdin=subprocess.PIPE, stderr=None) as process:
        yield process, int(process.line())


def alive(number: int) -> bool:
    """Whether a process runs; one that has ended but not been collected does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second where it ends between opening and reading
        return False


def gone(number: int) -> bool:
    deadline = time.monotonic() + 20
    while alive(number) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(number)


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks into /proc for the workers")
def test_workers_end_with_a_parent_that_was_killed(script):
    process, worker = script
    assert alive(worker)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert gone(worker)


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks into /proc for the workers")
def test_workers_go_on_after_a_signal_to_all_and_end_with_the_loader(script):
    process, worker = script
    for number in (signal.SIGTERM, signal.SIGINT):  # as a scheduler or a terminal sends to the whole group
        os.kill(worker, number)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.line() == "closed\n"
    assert gone(worker)
