"""A few steps of a tiny run on any mesh. ``python -m tests.training.mesh_steps GIVEN OUT FLAGS`` is one of
several processes.

It restores the checkpoint in GIVEN on its mesh, trains from there, and leaves in OUT the state (``trained.npz`` and a
checkpoint) and predictions by row (``logits.npz``).
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from kunlun_jax.data.schema import Schema
from kunlun_jax.models.base import ModelConfig
from kunlun_jax.models.pooled_product import PooledProductConfig
from kunlun_jax.nn import table_rows
from kunlun_jax.parallel import MeshConfig, make_mesh
from kunlun_jax.processes import gathered, is_first, join
from kunlun_jax.training import partition
from kunlun_jax.training.checkpoint import Checkpoints
from kunlun_jax.training.placement import own_rows, shardings
from kunlun_jax.training.run import Run, prepare
from kunlun_jax.training.step import TrainState
from tests.training.tiny import tiny_config

SMALL = PooledProductConfig(dim=8, embedding_dim=4, head_hidden=(8,), skip_events=("impression",))
LARGE = 60
"""Rows from which on the tables of the tiny world are dealt to parts: all but the smallest are."""
CUT = 16
"""Numbers from which on a dense parameter is cut over the devices."""
QUICK = {"xla_backend_optimization_level": 0}
CONSTANT = ("--optimizer.warmup", "0", "--optimizer.decay", "none", "--model.dropout", "0")
CLIPPED = ("--optimizer.clip-norm", "0.01")
"""Below the norm of every gradient here, which is of all parameters, wherever they lie."""
SHARED = ("--model.experts", "2", "--model.interaction-context", "summary")
"""Two experts with as many tokens each."""
ROWS = ("--data.train-rows", "600")
"""Of batches of 32 the last has 24."""
FLAGS = (*ROWS, *CLIPPED, *SHARED)
"""Of `steps`."""


def cut_small_things(set_to: Callable[[ModuleType, str, int], None]) -> None:
    """Has tables of the tiny world dealt to parts, all but the smallest, and dense parameters cut."""
    set_to(table_rows, "LARGE", LARGE)
    set_to(partition, "LEAST", CUT)


def prepared(mesh: MeshConfig, *flags: str, model: ModelConfig | None = None) -> Run:
    config = dataclasses.replace(tiny_config(*CONSTANT, *flags), mesh=mesh)
    return prepare(config if model is None else dataclasses.replace(config, model=model))


def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def leaves(state: TrainState) -> dict[str, np.ndarray]:
    """All of a state by name, whichever processes have it; a collective."""
    named = jax.tree_util.tree_leaves_with_path(state)
    whole = jax.device_get if jax.process_count() == 1 else lambda x: multihost_utils.process_allgather(x, tiled=True)
    return {jax.tree_util.keystr(path): whole(leaf) for path, leaf in named}


class Stepped(NamedTuple):
    """The schema, a state, its leaves, and predictions for the last batch by row."""

    schema: Schema
    state: TrainState
    leaves: dict[str, np.ndarray]
    logits: dict[int, np.ndarray]


def steps(
    mesh: MeshConfig,
    model: ModelConfig | None,
    dtype,
    start: Callable[[Schema, TrainState], TrainState] = lambda schema, new: new,
) -> Stepped:
    """After steps on the first two batches and the last, from what `start` makes of a new state."""
    name = np.dtype(dtype).name
    # flax's norms mix float64 with float32, which strict promotion refuses.
    with jax.enable_x64(dtype == np.float64), jax.numpy_dtype_promotion("standard"):
        flags = (*FLAGS, "--model.dtype", name)
        run = prepared(mesh, *flags, model=model and dataclasses.replace(model, dtype=name))
        with run.loader("train") as loader:
            batches = [cast(batch, dtype) for batch, _ in loader]
        used = [batches[number] for number in (0, 1, -1)]
        state = run.trainer.init()
        sums = state.sums  # always float32
        state = start(run.trainer.schema, dataclasses.replace(cast(state, dtype), sums=sums))
        step = run.trainer.compile_step(state, run.trainer.put(used[0]), QUICK)
        for batch in used:
            state, _ = step(state, run.trainer.put(batch))
        logits = own_rows(run.trainer.predict(state, run.trainer.put(used[-1])))
        rows, logits = (gathered(np.asarray(own)[None])[0] for own in (used[-1].row, logits))
        by_row = {int(row): logit for row, logit in zip(rows, logits, strict=True) if row >= 0}
        return Stepped(run.trainer.schema, state, leaves(state), by_row)


def assert_the_same(found: Stepped, expected: Stepped, exact: bool, where: str) -> None:
    """Leaves, without `exact` (float64) the metric sums alone, and predictions."""
    assert found.leaves.keys() == expected.leaves.keys() and found.logits.keys() == expected.logits.keys()
    for name, leaf in found.leaves.items():
        sums = name.startswith(".sums")  # float32 in any case
        if exact or sums:
            rtol, atol = (1e-5, 0.0) if sums else (1e-9, 1e-10)
            np.testing.assert_allclose(leaf, expected.leaves[name], rtol=rtol, atol=atol, err_msg=f"{name} {where}")
    both = np.array([(found.logits[row], expected.logits[row]) for row in expected.logits])
    np.testing.assert_allclose(both[:, 0], both[:, 1], rtol=0, atol=1e-10 if exact else 1e-4)


def save(state: TrainState, directory: Path) -> None:
    checkpoints = Checkpoints(directory)
    checkpoints.save(1, state, {"loader": {}})
    checkpoints.close()


def restore(directory: Path, mesh: MeshConfig, schema: Schema, like: TrainState) -> TrainState:
    """The saved state on a mesh, with the shapes and dtypes of another one."""
    checkpoints = Checkpoints(directory)
    places = shardings(schema, like, make_mesh(mesh))
    with jax.enable_x64():
        state, _ = checkpoints.restore(
            1, jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), like, places)
        )
    checkpoints.close()
    return state


def main() -> None:
    given, out = Path(sys.argv[1]), Path(sys.argv[2])
    mesh = tiny_config(*sys.argv[3:]).mesh
    join(mesh)
    cut_small_things(setattr)
    trained = steps(mesh, SMALL, np.float64, lambda schema, new: restore(given, mesh, schema, new))
    save(trained.state, out / "checkpoints")
    if is_first():
        np.savez(out / "trained.npz", **trained.leaves)
        np.savez(out / "logits.npz", **{str(row): logit for row, logit in trained.logits.items()})


if __name__ == "__main__":
    main()
