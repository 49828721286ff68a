"""Runs an interpreted Triton kernel on NumPy arrays, for tests on a machine without a GPU.

Triton's own launcher of interpreted kernels takes torch tensors and copies them; here the arrays stay where they are.
"""

import threading
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "int32": "i32"}
# The interpreter keeps its state in globals of Triton, and XLA may run two callbacks at once.
_lock = threading.Lock()


def bind(module: types.ModuleType) -> None:
    """Lets the functions of an interpreted module call each other as plain functions.

    Triton patches its language again at each call of one interpreted function by another, which takes milliseconds;
    once for the kernel itself is enough.
    """
    from triton.runtime.interpreter import InterpretedFunction

    for name, value in list(vars(module).items()):
        if isinstance(value, InterpretedFunction) and name.startswith("_"):
            setattr(module, name, value.rewrite())


def run(
    kernel: Any,
    arrays: Mapping[str, np.ndarray | None],
    outputs: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    constants: Mapping[str, Any],
    programs: int,
) -> Sequence[np.ndarray]:
    """Runs `programs` programs of `kernel`, one after another.

    Args:
      kernel: an interpreted function of `pallas_kernels.triton.kernels`.
      arrays: parameter -> operand, None where the kernel has none.
      outputs: parameter -> shape and dtype. NaN until the kernel writes them, so that omissions show.
      constants: its constant parameters.
      programs: size of the one-dimensional grid.

    Returns:
      The outputs in their order.
    """
    from triton.runtime.interpreter import GridExecutor

    class Executor(GridExecutor):
        """Without the copies to the host and back, which need torch."""

        def _init_args_hst(self, args_dev, kwargs):
            return args_dev, kwargs

        def _restore_args_dev(self, args_dev, args_hst, kwargs, kwargs_hst):
            pass

    held = {name: None if x is None else np.ascontiguousarray(x) for name, x in arrays.items()}
    results = {name: np.full(shape, np.nan, dtype) for name, (shape, dtype) in outputs.items()}
    pointers = {name: None if x is None else _pointer(x) for name, x in (held | results).items()}
    # Numbers that a mask removes afterwards may overflow along the way.
    with _lock, np.errstate(all="ignore"):
        Executor(kernel.rewrite(), kernel.arg_names, (programs,))(**pointers, **constants)
    return tuple(results.values())


def _pointer(array: np.ndarray) -> types.SimpleNamespace:
    """What Triton takes for a pointer: an object with an address and a type."""
    return types.SimpleNamespace(data_ptr=lambda: array.ctypes.data, dtype=_TYPES[array.dtype.name])
