"""Dense parameters in parts: which dimension of which is cut over the devices, and what travels because of it.

| parameter | lies | where it is used | its gradient |
|---|---|---|---|
| of `LEAST` numbers or more | cut over `fsdp` | put together: all-gather | reduce-scatter |
| the same, of an expert | cut over `fsdp` and `experts` | of own experts: all-to-all, all-gather | the same back |
| smaller, or none of its dimensions can be cut | whole on every device | as it is | all-reduce |

Cut is its largest dimension that so many devices divide, the first of equals. What is left of a sum, over the axes
that a parameter is not cut over, is an all-reduce. What the optimizer keeps of a parameter lies as it does. On an axis
of one device nothing is cut and nothing travels.

An expert is one of a list named ``experts`` (`kunlun_jax.nn.interaction`). Where E devices share M of them, device
``e`` uses the M / E from ``e M / E`` on, which stand first in its list; the rest of the list is zeros.

All but `specs` run inside `jax.shard_map`.

Source: ours (O), after FSDP (arXiv 2304.11277) and ZeRO (arXiv 1910.02054).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from kunlun_jax.parallel import AXES, EXPERTS, FSDP, devices_along

LEAST = 1 << 11
"""Numbers from which on a dense parameter is cut. A smaller one takes 8 KB, and what travels for it is latency."""

Path = tuple[Any, ...]
"""Of a parameter in an `nnx.State`, as `nnx.to_flat_state` gives it."""

WHOLE = PartitionSpec()


def specs(params: Any, mesh: Mesh) -> Any:
    """Where each dense parameter lies; `params` as arrays or as their shapes, those of whole parameters."""
    found = [(path, leaf.replace(_spec(path, leaf.shape, mesh))) for path, leaf in nnx.to_flat_state(params)]
    return nnx.from_flat_state(found)


def _spec(path: Path, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The rule of this module."""
    axes = (FSDP, EXPERTS) if _number(path) is not None else (FSDP,)
    axes = tuple(axis for axis in axes if mesh.shape[axis] > 1)
    devices = math.prod(mesh.shape[axis] for axis in axes)
    whole = [size if size % devices == 0 else 0 for size in shape]
    if not axes or math.prod(shape) < LEAST or not any(whole):
        return WHOLE
    return PartitionSpec(*[None] * whole.index(max(whole)), axes)


def _cut(spec: PartitionSpec) -> tuple[int, tuple[str, ...]] | None:
    """The dimension that is cut, and over which axes."""
    if spec == WHOLE:
        return None
    return len(spec) - 1, (spec[-1],) if isinstance(spec[-1], str) else spec[-1]


def _number(path: Path) -> int | None:
    """Which expert a parameter is of."""
    return path[path.index("experts") + 1] if "experts" in path else None


def _experts(paths: list[Path]) -> dict[Path, list[Path]]:
    """Parameters that are the same of different experts, in their order: path without its number -> the paths."""
    found: dict[Path, list[Path]] = {}
    for path in sorted((path for path in paths if "experts" in path), key=lambda path: path[path.index("experts") + 1]):
        at = path.index("experts") + 1
        found.setdefault((*path[:at], *path[at + 1 :]), []).append(path)
    return found


def gather(params: Any, places: Any) -> Any:
    """The dense parameters as the model uses them, from those of this device, which lie as `places` say."""
    flat, of = nnx.to_flat_state(params), dict(nnx.to_flat_state(places))
    whole = {path: leaf[...] for path, leaf in flat}
    if devices_along(EXPERTS) > 1:
        for alike in _experts(list(whole)).values():
            own = _own([whole[path] for path in alike], of[alike[0]].get_value())
            whole |= zip(alike, own, strict=True)
    for path, leaf in whole.items():
        cut = _cut(of[path].get_value())
        if cut is not None and FSDP in cut[1]:
            whole[path] = lax.all_gather(leaf, FSDP, axis=cut[0], tiled=True)
    return nnx.from_flat_state([(path, leaf.replace(whole[path])) for path, leaf in flat])


def _own(alike: list[Array], spec: PartitionSpec) -> list[Array]:
    """One parameter of all experts -> that of this device's, then zeros, which nothing reads."""
    each, cut = len(alike) // devices_along(EXPERTS), _cut(spec)
    stacked = jnp.stack(alike)
    if cut is None:
        own = lax.dynamic_slice_in_dim(stacked, lax.axis_index(EXPERTS) * each, each)
    else:
        own = lax.all_to_all(stacked, EXPERTS, 0, cut[0] + 1, tiled=True)
    return [*own, *jnp.zeros((len(alike) - each, *own.shape[1:]), own.dtype)]


def add(gradient: Any, places: Any) -> Any:
    """The gradient over all devices, from that of the loss of this one's share with respect to what lies here."""

    def of_leaf(leaf: Array, spec: PartitionSpec) -> Array:
        cut = _cut(spec)
        return lax.psum(leaf, AXES if cut is None else tuple(axis for axis in AXES if axis not in cut[1]))

    return jax.tree.map(of_leaf, gradient, places)


def norm(tree: Any, places: Any) -> Float[Array, ""]:
    """Root of the sum of squares of all parameters, or of a gradient that `add` made."""

    def squares(leaf: Array, spec: PartitionSpec) -> Array:
        cut, own = _cut(spec), jnp.square(leaf).sum()
        return own if cut is None else lax.psum(own, cut[1])

    return jnp.sqrt(sum(jax.tree.leaves(jax.tree.map(squares, tree, places))))
