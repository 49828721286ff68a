"""Where a step first came by a number that is not finite: in which layer, forward or backward.

The batch runs once more, forward with an eye on what every module returns, then backward. A step that was skipped left
parameters and tables as they were, so this is the same computation; only that it is compiled anew, and waited for.

Source: ours (O).
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool

from kunlun_jax.batch import Batch, Jagged
from kunlun_jax.models.base import Model
from kunlun_jax.training.placement import over_devices
from kunlun_jax.training.skipped import all_finite
from kunlun_jax.training.step import Trainer, TrainState

Finite = list[tuple[str, Bool[Array, ""]]]
"""What was computed, in order: its name, and whether all of it is finite."""


def where_not_finite(trainer: Trainer, state: TrainState, batch: Batch) -> str:
    """A sentence on the first thing in a training step that is not finite.

    Args:
      trainer: of the run.
      state: after the step was skipped.
      batch: the one of that step, on the devices.
    """
    names: list[str] = []

    def look(state: TrainState, batch: Batch) -> Array:
        found = _forward(trainer, state, batch)
        forward = len(found)
        found += _backward(trainer, state, batch, [name for name, _ in found])
        names[:] = [f"{'forward' if n < forward else 'backward'}: {name}" for n, (name, _) in enumerate(found)]
        return trainer.sum((~jnp.stack([finite for _, finite in found])).astype(jnp.int32))

    run = jax.jit(over_devices(look, trainer.schema, trainer.mesh, gives="sums"))
    with jax.transfer_guard("allow"):
        before = dataclasses.replace(state, step=state.step - jnp.ones_like(state.step))
        wrong = jax.device_get(run(before, batch)) > 0
    if not wrong.any():
        return "loss or gradient was not finite, and was when the step ran once more"
    return f"the first that is not finite, {names[int(wrong.argmax())]}"


def _forward(trainer: Trainer, state: TrainState, batch: Batch) -> Finite:
    """Inputs, then what each module returns, inner ones before those that call them, then the loss."""
    inputs, _ = trainer.read(state, batch)
    found: Finite = [(f"parameter {_dotted(path)}", jnp.isfinite(leaf).all()) for path, leaf in _leaves(state.params)]
    found += [(f"rows of table {name}", jnp.isfinite(rows).all()) for name, rows in inputs[0].items()]
    given = {"dense features": batch.dense, **{f"events {n}": x for n, x in batch.events.items()}}
    found += [(f"the batch's {name}", _finite(value)) for name, value in given.items()]
    with _watched(trainer.model(trainer.whole(state.params)), found):
        loss, _ = trainer.loss(state.params, *inputs)
    return [*found, ("the loss", jnp.isfinite(loss))]


def _backward(trainer: Trainer, state: TrainState, batch: Batch, called: list[str]) -> Finite:
    """Gradients of the parameters, those of modules that were called last before the others, then of the tables."""
    inputs, _ = trainer.read(state, batch)
    (params, rows), _ = jax.grad(trainer.loss, argnums=(0, 1), has_aux=True)(state.params, *inputs)
    order = {name: number for number, name in enumerate(called)}

    def number(path: tuple[str, ...]) -> int:
        """Of the call of the module that has the parameter, or of the nearest around it."""
        return next((order[n] for n in map(_output, _prefixes(path)) if n in order), -1)

    leaves = sorted(_leaves(trainer.sum_gradient(params)), key=lambda item: -number(item[0]))
    found = [(f"gradient of parameter {_dotted(path)}", all_finite(leaf)) for path, leaf in leaves]
    return found + [(f"gradient of rows of table {name}", all_finite(leaf)) for name, leaf in rows.items()]


@contextlib.contextmanager
def _watched(model: Model, found: Finite) -> Iterator[None]:
    """Adds to `found` what each module returns, of any model of the structure of `model` that is called inside."""
    assert isinstance(model, nnx.Module)
    paths: dict[int, tuple[str, ...]] = {}

    def watching(call: Any) -> Any:
        @functools.wraps(call)
        def watched(module: nnx.Module, *args: Any, **kwargs: Any) -> Any:
            if isinstance(module, type(model)) and not paths:
                paths.update((id(part), tuple(map(str, path))) for path, part in nnx.iter_modules(module))
            output = call(module, *args, **kwargs)
            found.append((_output(paths[id(module)]), _finite(output)))
            return output

        return watched

    kinds = {kind for _, part in nnx.iter_modules(model) for kind in type(part).__mro__ if "__call__" in vars(kind)}
    with contextlib.ExitStack() as stack:
        for kind in kinds:
            if issubclass(kind, nnx.Module):
                call = vars(kind)["__call__"]
                stack.callback(setattr, kind, "__call__", call)
                kind.__call__ = watching(call)
        yield


def _finite(value: Any) -> Bool[Array, ""]:
    """Whether all floating-point numbers of a tree are finite; of `Jagged` those of rows that hold an event."""
    parts = []
    for node in jax.tree.leaves(value, is_leaf=lambda x: isinstance(x, Jagged)):
        leaves, held = (jax.tree.leaves(node.values), node.mask()) if isinstance(node, Jagged) else ([node], None)
        for leaf in leaves:
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                finite = jnp.isfinite(leaf)
                parts.append((finite if held is None else finite | ~held.reshape(-1, *[1] * (leaf.ndim - 1))).all())
    return jnp.stack(parts).all() if parts else jnp.bool(True)


def _leaves(params: Any) -> list[tuple[tuple[str, ...], Array]]:
    return [(tuple(map(str, path)), leaf[...]) for path, leaf in nnx.to_flat_state(params)]


def _prefixes(path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The path without its end, then shorter ones."""
    return (path[:length] for length in range(len(path) - 1, -1, -1))


def _output(path: tuple[str, ...]) -> str:
    return f"output of {_dotted(path)}" if path else "the logits"


def _dotted(path: tuple[str, ...]) -> str:
    return ".".join(path)
