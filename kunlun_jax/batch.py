"""`Jagged` and `Batch`: the one contract between data and models.

Both are pytrees, so they pass through `jax.jit`, `jax.device_put` and Grain as they are. On the host their leaves are
NumPy arrays, on a device JAX arrays; shapes depend on the schema, the batch size and the row capacities alone, never
on the data, so a step compiles once.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from pallas_kernels import jagged


def pytree_dataclass(cls: type) -> type:
    """A frozen dataclass whose fields are all pytree children.

    Tree operations rebuild it without ``__init__``: jax puts placeholders into leaves, which a checked constructor
    would refuse.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    names = tuple(field.name for field in dataclasses.fields(cls))

    def flatten(node):
        return tuple((jax.tree_util.GetAttrKey(name), getattr(node, name)) for name in names), None

    def unflatten(_, children):
        node = object.__new__(cls)
        for name, child in zip(names, children, strict=True):
            object.__setattr__(node, name, child)
        return node

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


@pytree_dataclass
class Jagged:
    """Sequences of many examples, packed; the layout is described in `pallas_kernels.jagged`.

    Attributes:
      values: pytree of arrays ``[rows, ...]``; oldest first inside an example. ``rows`` is the static capacity.
      row_splits: ``[batch + 1]`` int32, multiples of 8; ``row_splits[b]`` is the first row of example ``b``.
      lengths: ``[batch]`` int32, rows that example ``b`` really has.
    """

    values: Any
    row_splits: Int[Array | np.ndarray, " splits"]
    lengths: Int[Array | np.ndarray, " batch"]

    @property
    def rows(self) -> int:
        """The static capacity: rows of `values`."""
        return jax.tree.leaves(self.values)[0].shape[0]

    def replace(self, values: Any) -> "Jagged":
        """The same examples with other values."""
        return Jagged(values, self.row_splits, self.lengths)

    def example_ids(self) -> Int[Array, " rows"]:
        """Example of each row, int32."""
        return jagged.example_ids(jnp.asarray(self.row_splits), self.rows)

    def positions(self) -> Int[Array, " rows"]:
        """Index of each row in its example, int32, 0 for the oldest."""
        return jagged.positions(jnp.asarray(self.row_splits), self.rows)

    def mask(self) -> Bool[Array, " rows"]:
        """True where a row holds an event."""
        return jagged.row_mask(jnp.asarray(self.row_splits), jnp.asarray(self.lengths), self.rows)


@pytree_dataclass
class Batch:
    """One batch of examples. Columns stand in the order of the schema; ids are already mapped to table rows.

    Attributes:
      categorical: ``[batch, features]`` int32 table rows of the single-valued context features.
      multi_valued: name -> `Jagged` of int32 ``[rows]`` table rows.
      dense: ``[batch, features]`` float32 context features.
      events: event type -> `Jagged` with values ``{"ids": int32 [rows, fields], "dense": float32 [rows, fields],
        "age": float32 [rows]}``; age is request time minus event time in seconds, so it falls along a history.
      labels: ``[batch, tasks]`` float32 in [0, 1], or NaN: no label, which counts for nothing.
      weights: ``[batch]`` float32; 0 marks a row that only fills the last batch of a split.
      request_time: ``[batch]`` uint32, seconds since the epoch.
      row: ``[batch]`` int32 number of the example in its data set, to find its keys again.
    """

    categorical: Int[Array | np.ndarray, "batch categorical"]
    multi_valued: dict[str, Jagged]
    dense: Float[Array | np.ndarray, "batch dense"]
    events: dict[str, Jagged]
    labels: Float[Array | np.ndarray, "batch tasks"]
    weights: Float[Array | np.ndarray, " batch"]
    request_time: UInt[Array | np.ndarray, " batch"]
    row: Int[Array | np.ndarray, " batch"]

    @property
    def size(self) -> int:
        """Examples, filling rows included."""
        return self.weights.shape[0]
