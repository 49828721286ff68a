"""Parameters from NNX to PyTorch and back, through safetensors; nothing is ever unpickled.

`BLOCKS` is the one table of names. A block has the same name in both models, except that PyTorch puts `system.EVENT`
before an event type and `system.TABLE` before a table; its leaves are named as `KINDS` says. Kernels are transposed:
NNX maps rows by ``x @ kernel`` and PyTorch by ``x @ weight.T``.

In between are plain NumPy arrays under PyTorch's names: `from_nnx` and `from_torch` make them, `write` and `read` are
the file, `into_nnx` and `into_torch` take them. The last two refuse arrays that are missing, extra, misshaped or of
another dtype, and name each.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from kunlun_jax.torch_reference.system import EVENT, TABLE, System

Arrays = Mapping[str, np.ndarray]
"""PyTorch's name -> array."""

KINDS: dict[str, dict[str, str]] = {
    "array": {"": ""},
    "map": {".kernel": ".weight"},
    "linear": {".kernel": ".weight", ".bias": ".bias"},
    "norm": {".scale": ".weight", ".bias": ".bias"},
    "mlp": {".layers.*.kernel": ".layers.*.weight", ".layers.*.bias": ".layers.*.bias"},
}
"""Kind of a block -> its leaves: name in NNX, name in PyTorch."""

BLOCKS: dict[str, str] = {
    "tables.{table}": "array",
    "context.dense": "linear",
    "context.project": "array",
    "event_input.{event}.mask": "mlp",
    "event_input.{event}.mlp": "mlp",
    "layers.*.weight_generation.compress": "map",
    "layers.*.weight_generation.mlp": "mlp",
    "layers.*.weight_generation.gate": "mlp",
    # Hierarchical seed pooling, then PMA, which is only its attention, without the norm.
    "layers.*.pool.{event}.attention.seeds": "array",
    "layers.*.pool.{event}.attention.norm": "norm",
    "layers.*.pool.{event}.attention.query": "linear",
    "layers.*.pool.{event}.attention.key_value": "linear",
    "layers.*.pool.{event}.attention.rank_keys": "array",
    "layers.*.pool.{event}.attention.out": "linear",
    "layers.*.pool.{event}.condense.token_maps": "array",
    "layers.*.pool.{event}.condense.channel_maps": "array",
    "layers.*.pool.{event}.condense.token_map": "map",
    "layers.*.pool.{event}.seeds": "array",
    "layers.*.pool.{event}.query": "linear",
    "layers.*.pool.{event}.key_value": "linear",
    "layers.*.pool.{event}.rank_keys": "array",
    "layers.*.pool.{event}.out": "linear",
    "layers.*.to_context.{event}": "linear",
    "layers.*.interaction.experts.*.fm_map": "array",
    "layers.*.interaction.experts.*.fm_norm": "norm",
    "layers.*.interaction.experts.*.deep": "mlp",
    "layers.*.interaction.experts.*.linear": "map",
    "layers.*.interaction.experts.*.residual": "map",
    "layers.*.interaction.experts.*.norm": "norm",
    "layers.*.ffn.{event}.keys.token_map": "map",
    "layers.*.ffn.{event}.keys.channel_map": "linear",
    "layers.*.ffn.{event}.values.token_map": "map",
    "layers.*.ffn.{event}.values.channel_map": "linear",
    "layers.*.ffn.{event}.values.free": "array",
    "layers.*.ffn.{event}.gain": "array",
    "layers.*.ffn.{event}.hidden": "linear",
    "layers.*.ffn.{event}.out": "linear",
    "layers.*.attention.{event}.norm": "norm",
    "layers.*.attention.{event}.qkv": "linear",
    "layers.*.attention.{event}.out": "linear",
    "head": "mlp",
    "wide": "map",
    # Wukong.
    "pool.{event}.seeds": "array",
    "pool.{event}.query": "linear",
    "pool.{event}.key_value": "linear",
    "pool.{event}.out": "linear",
    "layers.*.fm_map": "array",
    "layers.*.fm_norm": "norm",
    "layers.*.deep": "mlp",
    "layers.*.linear": "map",
    "layers.*.residual": "map",
    "layers.*.norm": "norm",
    # InterFormer: the cross arch of each layer, the last one, interaction and sequence arch.
    **{
        f"{place}.{block}": kind
        for place in ("layers.*.cross", "summary")
        for block, kind in {
            "compress": "map",
            "gate.mlp": "mlp",
            "pool.{event}.seeds": "array",
            "pool.{event}.query": "linear",
            "pool.{event}.key_value": "linear",
            "pool.{event}.out": "linear",
            "history_gate.{event}.mlp": "mlp",
        }.items()
    },
    "layers.*.interaction.cross.down.*": "map",
    "layers.*.interaction.cross.maps.*": "linear",
    "layers.*.interaction.mlp": "mlp",
    "layers.*.ffn.{event}.token_map": "map",
    # HSTU; its first norm has the name of Wukong's.
    "candidate": "mlp",
    "layers.*.uvqk": "linear",
    "layers.*.out_norm": "norm",
    "layers.*.out": "linear",
    "layers.*.position_bias": "array",
    "layers.*.time_bias": "array",
}
"""Every block of the models -> its kind; ``*`` stands for a number, ``{event}`` and ``{table}`` for a name."""


LEAVES: dict[str, str] = {
    block + old: block + new for block, kind in BLOCKS.items() for old, new in KINDS[kind].items()
}
"""Every leaf of the models: its name in NNX -> its name in PyTorch."""

_PREFIX = {"*": "", "{event}": EVENT, "{table}": TABLE}


def torch_name(path: tuple[str, ...]) -> str:
    """PyTorch's name of the leaf at `path` in NNX (one number or name per part, tables under "tables").

    Raises:
      KeyError: the table of names has no such leaf.
    """
    for old, new in LEAVES.items():
        pattern = old.split(".")
        if len(pattern) == len(path) and all(p in _PREFIX or p == q for p, q in zip(pattern, path, strict=True)):
            names = iter(q for p, q in zip(pattern, path, strict=True) if p in _PREFIX)
            return ".".join(_PREFIX[p] + next(names) if p in _PREFIX else p for p in new.split("."))
    raise KeyError(f"parameter {'.'.join(path)} has no name in PyTorch; add it to weights.BLOCKS")


def from_nnx(params: Any, tables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays of the dense parameters (an `nnx.State`) and tables, as `TrainState` holds them."""
    leaves, _, _ = _leaves(params, tables)
    return {name: np.ascontiguousarray(_turned(np.asarray(leaf), path)) for name, path, leaf in leaves}


def into_nnx(arrays: Arrays, params: Any, tables: Mapping[str, Any], *, source: str = "weights") -> tuple[Any, Any]:
    """Parameters and tables in the form of `params` and `tables`, which may be abstract (`jax.eval_shape`).

    Raises:
      ValueError: see `check`, whose messages name the arrays by `source`.
    """
    leaves, structure, count = _leaves(params, tables)
    wanted = {name: (leaf.shape[::-1] if _is_kernel(path) else leaf.shape, leaf.dtype) for name, path, leaf in leaves}
    check(arrays, wanted, source=source)
    new = [jnp.asarray(_turned(arrays[name], path)) for name, path, _ in leaves]
    return jax.tree.unflatten(structure, new[:count]), dict(zip(tables, new[count:], strict=True))


def from_torch(model: System) -> dict[str, np.ndarray]:
    """Arrays of a model's parameters, copied."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()}


def into_torch(arrays: Arrays, model: System, *, source: str = "weights") -> None:
    """Writes the arrays into the parameters of `model`.

    Raises:
      ValueError: see `check`, whose messages name the arrays by `source`; the model is unchanged.
    """
    state = model.state_dict()
    check(arrays, {n: (tuple(t.shape), t.cpu().numpy().dtype) for n, t in state.items()}, source=source)
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})


def check(arrays: Arrays, wanted: Mapping[str, tuple[tuple[int, ...], np.dtype]], *, source: str) -> None:
    """Compares names, shapes and dtypes with those `wanted`.

    Raises:
      ValueError: names each array that is missing, extra, misshaped or of another dtype, by PyTorch's name and shape.
    """
    faults = [f"{name} {list(shape)} is missing" for name, (shape, _) in wanted.items() if name not in arrays]
    for name, array in arrays.items():
        if name not in wanted:
            faults.append(f"{name} {list(array.shape)} is not of this model")
            continue
        shape, dtype = wanted[name]
        if array.shape != shape:
            faults.append(f"{name} has shape {list(array.shape)}; it must be {list(shape)}")
        if array.dtype != dtype:
            faults.append(f"{name} has dtype {array.dtype}; it must be {dtype}")
    if faults:
        raise ValueError(f"{source} does not fit the model:\n" + "\n".join(f"  {fault}" for fault in faults))


def write(path: Path, arrays: Arrays) -> None:
    """Writes a safetensors file."""
    save_file(dict(arrays), path)


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads a safetensors file, and no other kind of file.

    Raises:
      ValueError: the file is not one.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error}); no other format is read") from error


def _leaves(params: Any, tables: Mapping[str, Any]) -> tuple[list[tuple[str, tuple[str, ...], Any]], Any, int]:
    """(PyTorch's name, path, leaf) of every parameter and then of every table; tree and number of the parameters."""
    flat, structure = jax.tree.flatten_with_path(params)
    # The last key of a path is the value inside nnx.Param.
    paths = [(tuple(str(key.key) for key in keys[:-1]), leaf) for keys, leaf in flat]
    paths += [(("tables", name), table) for name, table in tables.items()]
    return [(torch_name(path), path, leaf) for path, leaf in paths], structure, len(flat)


def _is_kernel(path: tuple[str, ...]) -> bool:
    return path[-1] == "kernel" and path[0] != "tables"


def _turned(array: np.ndarray, path: tuple[str, ...]) -> np.ndarray:
    """A kernel transposed, anything else unchanged."""
    return array.T if _is_kernel(path) else array
