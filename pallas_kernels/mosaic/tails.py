"""The rows around the ends of examples, copied out with zeros behind them, for the tiles that would read on into a gap.

A streamed tile is a box of rows in memory. The last one of an example reads on behind the end, into a gap, where NaN
may stand, and into later examples; a weight of zero does not remove a NaN. So a tile that contains an example's end is
loaded from a small array of tails in its place, where zeros stand behind the end: which rows those are follows from the
offsets, so the loading warp only has another address to choose. All other tiles come from the array itself, which is
neither copied nor written.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.jagged import ROW_ALIGNMENT, zero_gaps


class Ends(NamedTuple):
    """Where the examples of a jagged array end, and where the rows around their ends are in the tails.

    Attributes:
      stop: row of the array behind the last one of each example, int32.
      offset: what to add to a row of the array to get that of the example's tail, a multiple of 8, int32.
      block: static, rows of a streamed tile.
      rows: static, rows of each tail.
    """

    stop: Int[Array, " batch"]
    offset: Int[Array, " batch"]
    block: int
    rows: int

    @classmethod
    def of(cls, row_splits: Int[Array, " splits"], lengths: Int[Array, " batch"], *, block: int, starts: int) -> "Ends":
        """The ends of examples whose streamed tiles begin at multiples of `starts` rows, counted in the example.

        A tile that contains the end begins less than `block` rows before it, so these tails hold every such tile.

        Args:
          row_splits: first row of each example, a multiple of 8, and the one behind the last, int32.
          lengths: rows of each example, int32.
          block: rows of a tile, a multiple of `starts`.
          starts: `block` where the tiles begin with the example, 8 where they may begin at any multiple of 8.
        """
        start, rows = row_splits[:-1], 2 * block - starts
        # Row of the tail's first row in its example; negative where the example is shorter than the tail.
        first = (lengths + (starts - 1)) // starts * starts - block
        number = jnp.arange(lengths.shape[0], dtype=jnp.int32)
        return cls(start + lengths, number * rows - (start + first), block, rows)

    def of_parts(self, parts: int) -> "Ends":
        """The same for examples each of which is streamed as `parts` of its own (`schedule.split`)."""
        return self._replace(stop=jnp.repeat(self.stop, parts), offset=jnp.repeat(self.offset, parts))

    def copy(self, values: Float[Array, "rows heads dim"]) -> Float[Array, "tail_rows heads dim"]:
        """The tails of an array, ``[batch * self.rows, heads, dim]``; rows in front of an example hold anything."""
        row = jnp.arange(self.stop.shape[0] * self.rows, dtype=jnp.int32).reshape(-1, self.rows)
        row -= self.offset[:, None]
        tails = values.at[row].get(mode="clip")
        tails = jnp.where((row < self.stop[:, None])[:, :, None, None], tails, jnp.zeros((), values.dtype))
        return tails.reshape(-1, *values.shape[1:])


class Streamed(NamedTuple):
    """Arrays that a kernel may stream.

    Attributes:
      arrays: x and y of `streaming.attend`.
      tails: their tails; none where `arrays` have no NaN in gaps, or no gaps.
      ends: where the tails are, for `schedule.work_list`; None without tails.
    """

    arrays: tuple[Float[Array, "rows heads dim"], Float[Array, "rows heads dim"]]
    tails: tuple[Array, ...] = ()
    ends: Ends | None = None


def guarded(
    x: Float[Array, "rows heads dim"],
    y: Float[Array, "rows heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    *,
    block: int,
    starts: int,
) -> Streamed:
    """Two jagged arrays made ready to be streamed, whatever their gaps hold: with tails, or as copies without NaN.

    Args:
      x: one of them.
      y: the other, of the same layout.
      row_splits: see `Ends.of`.
      lengths: see `Ends.of`.
      block: rows of a streamed tile.
      starts: see `Ends.of`.
    """
    if not pays(x.shape[0], lengths.shape[0], block, starts):
        x, y = (zero_gaps(array, row_splits, lengths) for array in (x, y))
        return Streamed((x, y))
    ends = Ends.of(row_splits, lengths, block=block, starts=starts)
    return Streamed((x, y), (ends.copy(x), ends.copy(y)), ends)


def pays(rows: int, batch: int, block: int, starts: int) -> bool:
    """Whether the tails of `batch` examples are smaller than their array of `rows` rows, so that copying them pays."""
    return batch * (2 * block - starts) < rows


ANY_START = ROW_ALIGNMENT
"""`starts` of tiles that may begin at every row to which a tile can be aligned."""
