"""Checkpoints: state and data position in one Orbax step, written in the background.

The state goes in as a flat dict from path to array, so that a checkpoint can be read without the classes that made it.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from kunlun_jax.training.step import TrainState


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
    """

    def __init__(self, directory: Path, *, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = _Manager(Path(directory).absolute(), options=options)

    def latest(self) -> int | None:
        """The newest complete step, or None; an interrupted write does not count."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, position: dict[str, Any]) -> None:
        """Starts to save; returns when the state may be donated. `position` must be JSON."""
        if step == self.latest():
            return
        flat = _flat(state)
        if jax.default_backend() == "cpu":
            # What Orbax reads in the background would be the very buffer that the next step overwrites.
            flat = jax.block_until_ready(jax.tree.map(jnp.copy, flat))
        self._manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(flat), data=ocp.args.JsonSave(position))
        )

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """State and data position of a step.

        Args:
          step: one that was saved.
          abstract: `Trainer.abstract_state()`; names, shapes and dtypes must be those that were saved, while devices
            may be others: each leaf comes where `abstract` has it.
        """
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(_flat(abstract)), data=ocp.args.JsonRestore())
        )
        names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in _paths(abstract)]
        # Arrays that were read may lie on memory that Orbax owns; a step donates its input, so it gets its own.
        leaves = [jnp.copy(restored["state"][name]) for name in names]
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves), restored["data"]

    def wait(self) -> None:
        """Until everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the background threads."""
        self._manager.wait_until_finished()
        self._manager.close()
