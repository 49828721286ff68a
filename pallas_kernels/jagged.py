"""The packed layout that every operator shares: rows of many examples in one array, nothing padded to the longest.

``values`` is ``[rows, ...]``. Example ``b`` owns rows ``row_splits[b] : row_splits[b] + lengths[b]``; every start is a
multiple of `ROW_ALIGNMENT`, and the next example may start any number of rows later. Rows that belong to no example
may hold anything (the tests put NaN there): operators must neither let them affect a result nor leave anything but
zeros there.

Source: ours (O); Warpgroup-semantics kernels need this alignment of a dynamic row offset.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

ROW_ALIGNMENT = 8


def aligned(lengths: np.ndarray) -> np.ndarray:
    """Rows that each example occupies: its length rounded up to a multiple of `ROW_ALIGNMENT`."""
    return -(-lengths // ROW_ALIGNMENT) * ROW_ALIGNMENT


def example_ids(row_splits: Int[Array, " splits"], rows: int) -> Int[Array, " rows"]:
    """Example of each row, int32; gaps belong to the example before them, rows after the last get ``B``."""
    starts = jnp.zeros(rows + 1, jnp.int32).at[row_splits[1:]].add(1, mode="drop")
    return jnp.cumsum(starts[:rows], dtype=jnp.int32)


def positions(row_splits: Int[Array, " splits"], rows: int) -> Int[Array, " rows"]:
    """Index of each row inside its example, int32, counting from 0 for the oldest."""
    return jnp.arange(rows, dtype=jnp.int32) - row_splits[example_ids(row_splits, rows)]


def row_mask(row_splits: Int[Array, " splits"], lengths: Int[Array, " batch"], rows: int) -> Bool[Array, " rows"]:
    """True for rows that hold an event, False for gaps and for rows after the last example."""
    example = example_ids(row_splits, rows)
    length = jnp.append(lengths, 0)[example]
    return jnp.arange(rows, dtype=jnp.int32) - row_splits[example] < length


def zero_padding(values: jax.Array, mask: Bool[Array, " rows"]) -> jax.Array:
    """`values` with every row outside `mask` set to zero; NaN there disappears, and its gradient is zero."""
    return jnp.where(mask.reshape(mask.shape + (1,) * (values.ndim - 1)), values, jnp.zeros((), values.dtype))


def zero_gaps(values: jax.Array, row_splits: Int[Array, " splits"], lengths: Int[Array, " batch"]) -> jax.Array:
    """`zero_padding` by offsets: `values` with zeros in the rows that no example owns.

    It copies the whole array. A streaming kernel, whose last tile of an example reads on into the gap, does so only
    where `pallas_kernels.mosaic.tails` would copy no less.
    """
    return zero_padding(values, row_mask(row_splits, lengths, values.shape[0]))
