"""Checkpoints: state and data position in one Orbax step, written in the background.

The state goes in as a flat dict from path to array, so that a checkpoint can be read without the classes that made it.
When Orbax has written a step, checksums of all its files follow (`kunlun_jax.checksums`), and only a step whose files
are as they were then is used: a flipped bit in a table would be another model, and no reader would notice.
"""

import logging
import math
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from kunlun_jax.checksums import damage, is_sealed, seal
from kunlun_jax.processes import agreed, is_first
from kunlun_jax.training.step import TrainState

logger = logging.getLogger(__name__)

DAMAGED = "damaged"
"""Folder beside the steps in which damaged ones are kept."""
COPIED = 2**30
"""On a CPU, bytes of a state up to which it is copied and written in the background. A larger one is written at
once, so that there need not be room for two."""
WRITTEN_AT_ONCE = 4
"""10^9 bytes of arrays that a process compresses at a time, at least; what is compressed stays until it is on disk."""


class DamagedCheckpoint(ValueError):
    """No checkpoint of a run is as it was written."""


def _flat(state: TrainState) -> dict[str, Any]:
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in _paths(state)}


def _paths(state: TrainState):
    return jax.tree_util.tree_flatten_with_path(state)[0]


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """False: the run decides when to stop (`stop.Stop`), and JAX counts every question as a step that began."""
        return False


class Checkpoints:
    """The checkpoints of one run. Of several processes each writes and reads what its devices hold: all are to call all
    methods, and `directory` lies on a file system that all of them see.

    Args:
      directory: made if absent.
      keep: newest steps to keep.
      writable: damaged steps, and those whose write was cut off, are taken away, so that they can be written again.

    Raises:
      DamagedCheckpoint: there are steps, and none is as it was written.
    """

    def __init__(self, directory: Path, *, keep: int = 2, writable: bool = True):
        directory = Path(directory).absolute()
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._latest = agreed(lambda: _newest_sound(directory, writable))
        self._options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._opened: _Manager | None = None
        self._thread = ThreadPoolExecutor(1, "checksums")
        self._sealing: Future[None] | None = None

    def latest(self) -> int | None:
        """The newest complete and undamaged step, or None; an interrupted write does not count."""
        return self._latest

    def save(self, step: int, state: TrainState, position: dict[str, Any]) -> None:
        """Starts to save; returns when the state may be donated. `position` must be JSON.

        Raises:
          OSError: as for `wait`, of the step before.
        """
        if step == self._latest:
            return
        self.wait()
        flat = _flat(state)
        manager = self._manager(flat)
        # There, what Orbax reads in the background would be the very buffer that the next step overwrites.
        on_cpu = jax.default_backend() == "cpu"
        copied = on_cpu and sum(leaf.nbytes for leaf in flat.values()) <= COPIED
        if copied:
            flat = jax.block_until_ready(jax.tree.map(jnp.copy, flat))
        elif on_cpu:
            flat = jax.tree.map(_alias, flat)
        manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(flat), data=ocp.args.JsonSave(position)))
        self._latest = step
        if on_cpu and not copied:
            manager.wait_until_finished()
            del flat
        if is_first():  # which is the one that renames the step when all have written their parts
            self._sealing = self._thread.submit(self._seal, manager, step)

    def _manager(self, flat: dict[str, Any]) -> _Manager:
        """Orbax's own, made when the arrays that it will write are known."""
        if self._opened is None:
            # What a device holds of an array is written as one, and Orbax refuses one as large as its limit.
            largest = max(map(_part_bytes, flat.values()))
            state = ocp.StandardCheckpointHandler(save_concurrent_gb=max(WRITTEN_AT_ONCE, 2 * largest // 10**9 + 1))
            handlers = {"state": state, "data": ocp.JsonCheckpointHandler()}
            self._opened = _Manager(self._directory, options=self._options, item_handlers=handlers)
        return self._opened

    def _seal(self, manager: _Manager, step: int) -> None:
        while manager.is_saving_in_progress():
            time.sleep(0.02)
        folder = self._directory / str(step)
        if not folder.is_dir():  # Orbax failed, and says so at the next call
            return
        try:
            seal(folder)
        except OSError as error:
            what = f"{error.strerror or error}: its checksums could not be written, so this checkpoint does not count"
            raise OSError(error.errno, what, str(folder)) from error

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """State and data position of a step.

        Args:
          step: one that was saved.
          abstract: `Trainer.abstract_state()`; names, shapes and dtypes must be those that were saved, while devices
            may be others: each leaf comes where `abstract` has it.
        """
        flat = _flat(abstract)
        restored = self._manager(flat).restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(flat), data=ocp.args.JsonRestore())
        )
        leaves = [_own(restored["state"], name) for name in flat]
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves), restored["data"]

    def wait(self) -> None:
        """Until everything saved is on disk.

        Raises:
          OSError: the checksums of a step could not be written; names its folder.
        """
        if self._opened is not None:
            self._opened.wait_until_finished()
        sealing, self._sealing = self._sealing, None
        if sealing is not None:
            sealing.result()

    def close(self) -> None:
        """Waits, and ends the background threads, also where `wait` raises."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            if self._opened is not None:
                self._opened.close()


def _part_bytes(x: jax.Array | jax.ShapeDtypeStruct) -> int:
    """Bytes of an array that one device holds."""
    shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
    return math.prod(shape) * x.dtype.itemsize


def _alias(x: jax.Array) -> jax.Array:
    """An array on the same memory, to be read and given up.

    What was read of an array stays with it as NumPy's, and an array of which that is held is copied instead of
    donated: the next step would take room for two states.
    """
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, [shard.data for shard in x.addressable_shards])


def _own(restored: dict[str, jax.Array], name: str) -> jax.Array:
    """Takes an array out of what was read, and copies it: it may lie on memory that Orbax owns, and a step donates it.

    Device by device, and each part is given up once it is copied, so that a large table is not there twice.
    """
    array = restored.pop(name)
    shape, sharding = array.shape, array.sharding
    parts = [shard.data for shard in array.addressable_shards]
    del array
    own = []
    while parts:
        own.append(jax.block_until_ready(jnp.copy(parts.pop(0))))
    return jax.make_array_from_single_device_arrays(shape, sharding, own)


def _newest_sound(directory: Path, writable: bool) -> int | None:
    """The newest step that may be used. Newer ones are named, and taken away if `writable`."""
    steps = sorted((int(p.name) for p in directory.glob("[0-9]*") if p.name.isdecimal() and p.is_dir()), reverse=True)
    # Where none has checksums, an older version wrote them, or the first save was cut off just before they were added.
    unchecked = steps and not any(is_sealed(directory / str(step)) for step in steps)
    damaged = []
    for step in steps:
        folder = directory / str(step)
        if unchecked:
            logger.warning("%s has no checksums and is used unchecked", folder)
            return step
        wrong = damage(folder) if is_sealed(folder) else "it has no checksums: its write was cut off, or is not done"
        if wrong is None:
            return step
        damaged.append(f"{folder}: {wrong}")
        logger.warning("checkpoint %s is not used: %s", folder, wrong)
        if writable and len(damaged) < len(steps):
            (directory / DAMAGED).mkdir(exist_ok=True)
            shutil.rmtree(directory / DAMAGED / folder.name, ignore_errors=True)
            folder.rename(directory / DAMAGED / folder.name)
    if damaged:
        raise DamagedCheckpoint(
            "no checkpoint is as it was written; train anew in another --run.dir, or remove this one:\n"
            + "\n".join(f"  {line}" for line in damaged)
        )
    return None
