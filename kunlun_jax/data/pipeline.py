"""`make_loader`: batches of a split in a fixed order, packed ahead of the training step by Grain.

Batch ``k`` is a function of the data, the seed and ``k`` alone. So the order does not depend on the number of
processes or workers, and the state of a loader is the number of the next batch: small, exact whatever has been
prefetched, and valid for any number of workers.
"""

import dataclasses
import functools
import gc
import logging
import math
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import grain
import jax
import numpy as np
from absl import flags

from kunlun_jax.batch import Batch
from kunlun_jax.data.dataset import Dataset, Source
from kunlun_jax.data.pack import Counts, capacity_names, pack
from kunlun_jax.data.schema import Schema
from kunlun_jax.data.shares import joined, shares
from kunlun_jax.data.shuffle import shuffled
from kunlun_jax.ranges import at_least, check
from pallas_kernels.jagged import ROW_ALIGNMENT, aligned

logger = logging.getLogger(__name__)

CAPACITY_MULTIPLE = 128  # rows; tiles of the kernels divide it
EXACT_ROWS = 2_000_000  # splits up to this size are measured whole for their capacity
SAMPLE_ROWS = 500_000  # of larger ones
SAMPLE_MARGIN = 1.1
_ALIGNMENT = 64  # bytes, of an array in a box
_WORKER_GRACE_S = 60.0
_SHARED_MEMORY = Path("/dev/shm")

Shuffle = Literal["none", "global"]


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """How examples become batches."""

    batch_size: int = 512
    """Examples per global batch, over all processes."""
    max_events: int = 1000
    """How many of the newest events of each history are kept, per event type."""
    max_events_of: tuple[tuple[str, int], ...] = ()
    """Exceptions to max_events by event type, as pairs: click 200 like 50."""
    max_rows_per_example: int = 0
    """Most packed rows per example, averaged over a device's share of a batch, for each event type and multi-valued
    feature, at least 8; what does not fit is cut and counted. Other numbers of devices have other shares, so they cut
    other events; experiments.evaluate has one device. 0 means as many as the fullest share needs."""
    shuffle: Shuffle = "none"
    """none: rows in order of request time; global: a new random order of the whole split every epoch. Evaluation
    is in such an order, too, so that no batch is of a few users with long histories, for which all would need room."""
    workers: int = 0
    """Processes that pack batches; 0 packs in threads of this process. Scripts need an ``if __name__`` guard."""
    threads: int = 1
    """Threads that pack batches if there are no workers. They share only the interpreter with the step and avoid the
    copy through shared memory: usually the better choice for large batches."""
    prefetch: int = 2
    """Batches packed ahead, per worker or thread."""

    RANGES: ClassVar = {
        "batch_size": at_least(1),
        "max_events": at_least(1),
        "max_rows_per_example": at_least(0),
        "workers": at_least(0),
        "threads": at_least(1),
        "prefetch": at_least(1),
    }

    def __post_init__(self):
        check(self, "loader")
        if self.shuffle not in ("none", "global"):
            raise ValueError(f"loader field 'shuffle' is {self.shuffle!r}; use 'none' or 'global'")
        if 0 < self.max_rows_per_example < ROW_ALIGNMENT:
            # Each list that is not cut to nothing has such a block, and pack cuts all to the same length.
            raise ValueError(
                f"loader.max_rows_per_example is {self.max_rows_per_example}; it must be 0 (no bound) or at least "
                f"{ROW_ALIGNMENT}: rows come in blocks of that many, so with fewer every history may be cut to nothing"
            )
        for event, number in self.max_events_of:
            if number < 1:
                raise ValueError(f"loader field 'max_events_of' gives {event!r} {number} events; give at least 1")

    def max_events_by_type(self, schema: Schema) -> dict[str, int]:
        """Events kept per event type of `schema`.

        Raises:
          ValueError: `max_events_of` names a type that the schema does not have.
        """
        types = [event.name for event in schema.events]
        unknown = [name for name, _ in self.max_events_of if name not in types]
        if unknown:
            raise ValueError(
                f"loader field 'max_events_of' names {unknown}; schema {schema.name!r} has event types {types}"
            )
        return dict.fromkeys(types, self.max_events) | dict(self.max_events_of)

    def share_size(self, share_count: int) -> int:
        """Examples in each share of a batch; ValueError if it cannot be divided evenly."""
        if self.batch_size % share_count:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of {share_count}, the number of devices that share it"
            )
        return self.batch_size // share_count


def make_loader(
    dataset: Dataset,
    split: str,
    config: LoaderConfig,
    *,
    epochs: int = 1,
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    share_count: int = 1,
    capacity: Mapping[str, int] | Literal["auto"] = "auto",
) -> "Loader":
    """A loader over `epochs` passes through a split, each ending with a batch filled up with rows of weight 0.

    Args:
      dataset: see `open_dataset` and the other data modules.
      split: its name.
      config: batch size, cuts, order, workers.
      epochs: passes.
      seed: of the global shuffle; nothing else is random.
      process_index: of the shares of every batch, this process gets run ``process_index`` of ``process_count`` equal
        ones. It looks at the lengths of all histories of a batch, since shares are dealt by them, and reads its own.
      process_count: processes that share a batch.
      share_count: devices of all processes that share a batch: it comes as shares, one after the other along the first
        axis of every array, each with its own offsets.
      capacity: packed rows of a share per event type and multi-valued feature, from `capacities`; "auto" calls it.

    Raises:
      ValueError: a field is out of range, or the batch size is not a multiple of the shares, or they not of the
        processes.
      KeyError: there is no such split.
    """
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; it must be at least 1")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index is {process_index}; it must be from 0 to {process_count - 1}")
    if share_count % process_count:
        raise ValueError(f"share_count is {share_count}; it must be a multiple of process_count {process_count}")
    rows = _some_rows(dataset, split)
    if capacity == "auto":
        capacity = capacities(dataset, [split], config, epochs=epochs, seed=seed, share_count=share_count)
    own = share_count // process_count
    plan = _Plan(
        source=dataset.source,
        rows=rows,
        batch_size=config.batch_size,
        shuffle=config.shuffle,
        seed=seed,
        epochs=epochs,
        share_count=share_count,
        share_size=config.share_size(share_count),
        own=range(process_index * own, (process_index + 1) * own),
        max_events=config.max_events_by_type(dataset.schema),
        capacity=dict(capacity),
    )
    identity = {
        "fingerprint": dataset.fingerprint,
        "split": split,
        "batch_size": config.batch_size,
        "shuffle": config.shuffle,
        "seed": seed,
    }
    return Loader(plan, identity, config.workers, config.threads, config.prefetch)


def capacities(
    dataset: Dataset,
    splits: Sequence[str],
    config: LoaderConfig,
    *,
    epochs: int = 1,
    seed: int = 0,
    share_count: int = 1,
) -> dict[str, int]:
    """Packed rows that the fullest share of a batch needs, per event type and multi-valued feature, a multiple of 128.

    Every batch of every split is measured, in the order of `config`: that of time, or the `epochs` orders of a global
    shuffle with `seed`. So with these capacities nothing is cut (unless `config.max_rows_per_example` limits them). A
    split of more than 2 million rows is measured on an evenly spaced sample of its batches, plus a tenth, and a log
    line says so. The result is the same on all processes.

    Raises:
      ValueError: a split has no rows, or the batch size is not a multiple of the shares.
      KeyError: there is no such split.
    """
    names = capacity_names(dataset.schema)
    config.share_size(share_count)
    size = config.batch_size
    needed = dict.fromkeys(names, 0)
    max_events = config.max_events_by_type(dataset.schema)
    for split in splits:
        rows = _some_rows(dataset, split)
        orders = [functools.partial(shuffled, len(rows), seed, epoch) for epoch in range(epochs)]
        if config.shuffle == "none":
            orders = [lambda index: index]
        if len(rows) <= EXACT_ROWS:
            lengths = _packed_rows(dataset.source, np.arange(rows.start, rows.stop), max_events)
            for order in orders:
                index = order(np.arange(len(rows)))
                fullest = _fullest({name: of[index] for name, of in lengths.items()}, size, share_count)
                needed = {name: max(needed[name], fullest[name]) for name in names}
        else:
            starts = np.linspace(0, len(rows) - size, max(2, SAMPLE_ROWS // size), dtype=np.int64)
            sample = (starts[:, None] + np.arange(size)).reshape(-1)
            lengths = _packed_rows(dataset.source, rows.start + orders[0](sample), max_events)
            fullest = _fullest(lengths, size, share_count)
            needed = {name: max(needed[name], math.ceil(fullest[name] * SAMPLE_MARGIN)) for name in names}
            logger.warning(
                "split %r has %d rows: capacities are estimated from %d batches with a margin of %.0f%%; "
                "what should not fit is cut and counted",
                *(split, len(rows), len(starts), 100 * (SAMPLE_MARGIN - 1)),
            )
    if config.max_rows_per_example:
        needed = {name: min(rows, config.max_rows_per_example * size // share_count) for name, rows in needed.items()}
    return {name: max(1, -(-rows // CAPACITY_MULTIPLE)) * CAPACITY_MULTIPLE for name, rows in needed.items()}


def _some_rows(dataset: Dataset, split: str) -> range:
    """Row numbers of a split that has some."""
    rows = dataset.split(split)
    if not rows:
        raise ValueError(f"split {split!r} of data set {dataset.schema.name!r} has no rows")
    return rows


class Loader(Iterator[tuple[Batch, Counts]]):
    """Iterator over ``(Batch, Counts)``; its state is a small dict that JSON can hold.

    Attributes:
      capacity: packed rows per event type and multi-valued feature.
      batches_per_epoch: including the last, filled-up one.
      position: number of the next batch, counted over all epochs.
    """

    def __init__(self, plan: "_Plan", identity: dict[str, Any], workers: int, threads: int, prefetch: int):
        self._plan, self._identity = plan, identity
        self._workers, self._threads, self._prefetch = workers, threads, prefetch
        self._batches: Any = None  # Grain's iterator while it is running
        self.capacity = plan.capacity
        self.batches_per_epoch = plan.batches_per_epoch
        self.position = 0

    def __len__(self) -> int:
        """Batches of all epochs."""
        return self._plan.epochs * self.batches_per_epoch

    def __next__(self) -> tuple[Batch, Counts]:
        if self.position >= len(self):
            self.close()
            raise StopIteration
        if self._batches is None:
            self._batches = self._start(self.position)
        element = next(self._batches)
        batch, counts = _unboxed(element) if self._workers else element
        self.position += 1
        return batch, counts

    def rows(self, number: int) -> np.ndarray:
        """Row numbers of the examples of batch `number`, counted over all epochs, on all processes: int64, in order."""
        return self._plan.row_numbers(number)

    def get_state(self) -> dict[str, Any]:
        """Where the loader is, in what order of what data; batches that are only prefetched do not count."""
        return self._identity | {"next_batch": self.position}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues after the batch after which `state` was taken.

        Raises:
          ValueError: the state belongs to other data or another order, or is past the last batch.
        """
        known = self._identity.keys() | {"next_batch"}
        if state.keys() != known:
            raise ValueError(f"loader state has the fields {sorted(state)}; it must have {sorted(known)}")
        for name, here in self._identity.items():
            if state[name] != here:
                raise ValueError(
                    f"loader state has {name} {state[name]!r}, this loader {here!r}; they must be the same"
                )
        if not 0 <= state["next_batch"] <= len(self):
            raise ValueError(f"loader state has next_batch {state['next_batch']}; it must be from 0 to {len(self)}")
        self.close()
        self.position = int(state["next_batch"])

    def close(self) -> None:
        """Stops worker processes and threads; the loader can continue later and then starts them again."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None
            if self._workers:
                # Grain's queues are in reference cycles. Collected later, in the middle of a call to multiprocessing's
                # resource tracker, they would call it again, which it warns of.
                gc.collect()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _check_shared_memory(self) -> None:
        # Without this a worker would die of SIGBUS in a container with little shared memory, without saying why.
        if not _SHARED_MEMORY.is_dir():
            return
        batches = self._workers * (self._prefetch + 1) + 1
        needed, free = batches * self._plan.batch_bytes, shutil.disk_usage(_SHARED_MEMORY).free
        if needed > free:
            raise RuntimeError(
                f"{_SHARED_MEMORY} has {free / 2**20:.0f} MiB free, but {batches} batches of {self._workers} workers "
                f"need {needed / 2**20:.0f}; allow more (docker run --shm-size), or lower 'workers' or 'prefetch'"
            )

    def _start(self, position: int) -> Any:
        batches = grain.MapDataset.range(position, len(self)).map(self._plan)
        if not self._workers:
            options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self._prefetch * self._threads)
            return iter(batches.to_iter_dataset(options))
        self._check_shared_memory()
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain needs its own flags parsed; their defaults are right
        options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=self._prefetch)
        in_worker = batches.map(_boxed).to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        return iter(in_worker.mp_prefetch(options, worker_init_fn=_init_worker))


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Makes batch ``k``; sent to the workers."""

    source: Source
    rows: range
    batch_size: int
    shuffle: Shuffle
    seed: int
    epochs: int
    share_count: int
    share_size: int
    own: range
    max_events: dict[str, int]
    capacity: dict[str, int]

    @property
    def batches_per_epoch(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    @property
    def batch_bytes(self) -> int:
        """Size of what this process has of a batch; all arrays have 4-byte elements."""
        schema = self.source.schema
        per_example = len(schema.categorical) + len(schema.dense) + len(schema.tasks) + 3
        elements = self.share_size * (per_example + 2 * len(self.capacity))
        packed = sum(
            self.capacity[event.name] * (len(event.categorical) + len(event.dense) + 1) for event in schema.events
        )
        packed += sum(self.capacity[feature.name] for feature in schema.multi_valued)
        return 4 * len(self.own) * (elements + packed)

    def row_numbers(self, number: int) -> np.ndarray:
        """Rows of batch `number`, of all processes, fewer at the end of an epoch."""
        epoch, batch = divmod(int(number), self.batches_per_epoch)
        start = batch * self.batch_size
        index = np.arange(start, min(start + self.batch_size, len(self.rows)), dtype=np.int64)
        if self.shuffle == "global":
            index = shuffled(len(self.rows), self.seed, epoch, index)
        return index + self.rows.start

    def __call__(self, number: int) -> tuple[Batch, Counts]:
        index = self.row_numbers(number)
        if self.share_count == 1:
            return self._packed(index)
        lengths = _lengths(self.source, index, self.max_events)
        packed_rows = sum((aligned(of) for of in lengths.values()), np.zeros(len(index), np.int64))
        dealt = shares(packed_rows, self.share_count)
        events = sum((lengths[name] for name in self.max_events), np.zeros(len(index), np.int64))
        parts = [self._packed(index[dealt[number]]) for number in self.own]
        counts = sum((counts for _, counts in parts), Counts())
        fullest = max(int(events[share].sum()) for share in dealt)
        return joined([batch for batch, _ in parts]), dataclasses.replace(counts, events_of_fullest=fullest)

    def _packed(self, index: np.ndarray) -> tuple[Batch, Counts]:
        return pack(self.source.schema, self.source.rows(index, self.max_events), self.share_size, self.capacity)


def _lengths(source: Source, index: np.ndarray, max_events: dict[str, int]) -> dict[str, np.ndarray]:
    """How many events, as they are cut, and ids each example has, per event type and multi-valued feature."""
    lengths = {
        event.name: np.minimum(source.history_lengths(index, event.name), max_events[event.name])
        for event in source.schema.events
    }
    return lengths | {feature.name: source.list_lengths(index, feature.name) for feature in source.schema.multi_valued}


def _packed_rows(source: Source, index: np.ndarray, max_events: dict[str, int]) -> dict[str, np.ndarray]:
    """Packed rows that each example occupies, per event type and multi-valued feature."""
    return {name: aligned(of) for name, of in _lengths(source, index, max_events).items()}


def _fullest(packed_rows: Mapping[str, np.ndarray], size: int, share_count: int) -> dict[str, int]:
    """The most rows of any share of consecutive slices of `size` examples, by name."""
    if share_count == 1 or not packed_rows:
        return {
            name: int(np.add.reduceat(rows, np.arange(0, len(rows), size)).max()) for name, rows in packed_rows.items()
        }
    total = np.sum(list(packed_rows.values()), axis=0)
    most = dict.fromkeys(packed_rows, 0)
    for start in range(0, len(total), size):
        for share in shares(total[start : start + size], share_count):
            for name, rows in packed_rows.items():
                most[name] = max(most[name], int(rows[start + share].sum()))
    return most


def _boxed(element: tuple[Batch, Counts]) -> tuple[np.ndarray, Any, Counts]:
    """A batch as one run of bytes, because Grain moves every array through a shared memory file of its own."""
    batch, counts = element
    leaves, structure = jax.tree.flatten(batch)
    places = [(leaf.dtype, leaf.shape, leaf.nbytes) for leaf in leaves]
    box = np.empty(sum(_room(size) for _, _, size in places), np.uint8)
    start = 0
    for leaf in leaves:
        box[start : start + leaf.nbytes] = leaf.reshape(-1).view(np.uint8)
        start += _room(leaf.nbytes)
    return box, (structure.unflatten(range(len(leaves))), places), counts


def _unboxed(element: tuple[np.ndarray, Any, Counts]) -> tuple[Batch, Counts]:
    """The batch of `_boxed`, in this process's memory: Grain's holds a file descriptor and dies with its array."""
    shared, (numbered, places), counts = element
    box = np.array(shared)
    leaves, start = [], 0
    for dtype, shape, size in places:
        leaves.append(box[start : start + size].view(dtype).reshape(shape))
        start += _room(size)
    return jax.tree.map(lambda number: leaves[number], numbered), counts


def _room(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _init_worker(worker_index: int, worker_count: int) -> None:
    """A worker outlives signals to the whole process group, so that the run can save, but never its parent."""

    def leave_later(*_):
        timer = threading.Timer(_WORKER_GRACE_S, os._exit, (1,))
        timer.daemon = True
        timer.start()

    def leave_with_parent():
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, leave_later)
    threading.Thread(target=leave_with_parent, daemon=True).start()
