"""window_attention by plain XLA: a loop over only those pairs of tiles that the window joins.

Each example is cut into its own tiles. A query tile is paired with those tiles of its example that hold a key inside
the window of one of its rows; the pairs are numbered consecutively, and a step of the loop works on a chunk of them.
Time follows the number of pairs, O(rows * min(window, length)); memory holds the operands in tiles, a running softmax
for each row, and one chunk of scores.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.dispatch import accumulator, vary_alike, vary_like
from pallas_kernels.operators.window_attention.reference import each_head
from pallas_kernels.xla import pairs as tile_pairs
from pallas_kernels.xla import softmax, tiles


def window_attention(
    q: Float[Array, "rows heads dim"],
    k: Float[Array, "rows key_heads dim"],
    v: Float[Array, "rows key_heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    *,
    window: tuple[int, int],
    scale: float,
) -> Float[Array, "rows heads dim"]:
    """See `pallas_kernels.window_attention`."""
    k, v = (each_head(x, q.shape[1]) for x in (k, v))
    return _window_attention(window, scale, *vary_alike(q, k, v, row_splits, lengths))


class _Pairs(NamedTuple):
    """The pairs of one call, sorted by query tile; tile numbers are those of the schedule.

    Attributes:
      plan: the tiles.
      numbering: their numbers.
      table: for each tile, what to add to the number of a pair to get its key tile, the rows of the example before the
        tile, and the rows in it.
    """

    plan: tiles.Schedule
    numbering: tile_pairs.Numbering
    table: Int[Array, "tiles 3"]


def _plan(window, q, row_splits, lengths) -> tuple[int, int, _Pairs]:
    """Rows per tile, pairs per step, and the pairs."""
    rows, heads, _ = q.shape
    left, right = (min(side, rows) for side in window)
    size = tiles.tile_rows(rows, lengths.shape[0])
    chunk = tiles.chunk_tiles(heads * size * size)
    plan = tiles.schedule(row_splits, lengths, rows=-(-rows // 8) * 8, tile_rows=size, chunk=1)
    tile = jnp.arange(plan.block.shape[0], dtype=jnp.int32)
    used = plan.count > 0
    offset = jnp.where(used, plan.block * tiles.ROW_ALIGNMENT - tiles.take(row_splits, plan.example), 0)
    low = tiles.quotient(jnp.maximum(offset - left, 0), size)
    last = jnp.minimum(offset + plan.count + right, tiles.take(lengths, plan.example)) - 1
    high = tiles.quotient(jnp.maximum(last, 0), size)
    each = jnp.where(used, high - low + 1, 0)
    numbering = tile_pairs.numbering(each, chunk)
    ends = numbering.ends[: each.shape[0]]
    first_key = tile - tiles.quotient(offset, size) + low
    table = jnp.stack([first_key - (ends - each), offset, plan.count], axis=1)
    return size, chunk, _Pairs(plan, *jax.lax.optimization_barrier((numbering, table)))


class _Chunk(NamedTuple):
    """The pairs of one step.

    Attributes:
      tile: query tile of each pair, ascending without gaps; entries after the last pair have the last tile.
      key_tile: key tile of each pair.
      mask: True where the query may read the key; all False for entries after the last pair.
    """

    tile: Int[Array, " chunk"]
    key_tile: Int[Array, " chunk"]
    mask: Bool[Array, "chunk queries keys"]


def _chunk_of(window, pairs: _Pairs, step: Int[Array, ""], size: int, chunk: int, reached: Int[Array, ""]) -> _Chunk:
    """The pairs of a step. `reached` is the query tile at which the previous step ended, 0 for the first step."""
    left, right = (min(side, pairs.plan.slot.shape[0] * tiles.ROW_ALIGNMENT) for side in window)
    index, used, tile = tile_pairs.of_step(pairs.numbering, step, chunk, reached, pairs.plan.used)
    shift, offset, _ = (x[:, 0] for x in jnp.split(tiles.take(pairs.table, tile), 3, axis=1))
    key_tile = jnp.where(used, index + shift, tile)
    _, key_offset, count = (x[:, 0] for x in jnp.split(tiles.take(pairs.table, key_tile), 3, axis=1))

    row = jnp.arange(size, dtype=jnp.int32)
    distance = (key_offset - offset)[:, None, None] + (row[None, None, :] - row[None, :, None])
    count = jnp.where(used, count, 0)[:, None, None]
    mask = (distance >= -left) & (distance <= right) & (row[None, None, :] < count)
    return _Chunk(*jax.lax.optimization_barrier((tile, key_tile, mask)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _window_attention(window, scale, q, k, v, row_splits, lengths):
    return _forward(window, scale, q, k, v, row_splits, lengths)[0]


def _forward(window, scale, q, k, v, row_splits, lengths):
    rows, heads, dim = q.shape
    acc = accumulator(q.dtype)
    size, chunk, pairs = _plan(window, q, row_splits, lengths)
    q_tiles, k_tiles, v_tiles = (tiles.cut(x, pairs.plan, size) for x in (q, k, v))

    def body(step, carry):
        reached, running = carry
        tile, key_tile, mask = _chunk_of(window, pairs, step, size, chunk, reached)
        k_tile, v_tile = (tiles.take(x, key_tile) for x in (k_tiles, v_tiles))
        q_tile = tiles.take(q_tiles, tile)
        s = scale * jnp.einsum("chqd,chkd->chqk", q_tile, k_tile, preferred_element_type=acc)
        s = jnp.where(mask[:, None], s, -jnp.inf)
        return tile[-1], softmax.merge(running, s, v_tile, tile - tile[0], tile[0])

    slots = q_tiles.shape[0]
    steps = tiles.quotient(pairs.numbering.number + (chunk - 1), chunk)
    start = (*vary_like(q, jnp.int32(0)), softmax.start(q, slots + chunk, heads, size, dim, acc))
    _, running = jax.lax.fori_loop(0, steps, body, start)
    out, log_sum = softmax.finish(softmax.Running(*(x[:slots] for x in running)))
    out = tiles.join(out, pairs.plan, q.dtype, rows)
    return out, (q, k, v, row_splits, lengths, out, log_sum)


def _backward(window, scale, saved, d_out):
    q, k, v, row_splits, lengths, out, log_sum = saved
    rows = q.shape[0]
    acc = accumulator(q.dtype)
    size, chunk, pairs = _plan(window, q, row_splits, lengths)
    # A cotangent on a padding row may be NaN; the product is masked like every operand when it is cut into tiles.
    delta = (d_out.astype(acc) * out.astype(acc)).sum(axis=-1, keepdims=True)
    q_tiles, k_tiles, v_tiles, d_tiles, delta = (tiles.cut(x, pairs.plan, size) for x in (q, k, v, d_out, delta))

    def body(step, carry):
        reached, dq, dk, dv = carry
        tile, key_tile, mask = _chunk_of(window, pairs, step, size, chunk, reached)
        mask = mask.swapaxes(1, 2)
        q_tile, d_tile = (tiles.take(x, tile) for x in (q_tiles, d_tiles))
        k_tile, v_tile = (tiles.take(x, key_tile) for x in (k_tiles, v_tiles))
        s = scale * jnp.einsum("chkd,chqd->chkq", k_tile, q_tile, preferred_element_type=acc)
        p = jnp.exp(jnp.where(mask[:, None], s, -jnp.inf) - tiles.take(log_sum, tile)[:, :, None, :])
        dp = jnp.einsum("chkd,chqd->chkq", v_tile, d_tile, preferred_element_type=acc)
        ds = (p * (dp - tiles.take(delta, tile).swapaxes(2, 3)) * scale).astype(q.dtype)
        dv_tile = jnp.einsum("chkq,chqd->chkd", p.astype(q.dtype), d_tile, preferred_element_type=acc)
        dk_tile = jnp.einsum("chkq,chqd->chkd", ds, q_tile, preferred_element_type=acc)
        dq_tile = jnp.einsum("chkq,chkd->chqd", ds, k_tile, preferred_element_type=acc)
        dq, dk, dv = tiles.add(dq, tile, dq_tile), tiles.add(dk, key_tile, dk_tile), tiles.add(dv, key_tile, dv_tile)
        return tile[-1], dq, dk, dv

    steps = tiles.quotient(pairs.numbering.number + (chunk - 1), chunk)
    start = vary_like(q, jnp.int32(0), *(jnp.zeros(q_tiles.shape, acc) for _ in range(3)))
    _, *gradients = jax.lax.fori_loop(0, steps, body, start)
    dq, dk, dv = (tiles.join(x, pairs.plan, q.dtype, rows) for x in gradients)
    return dq, dk, dv, None, None


_window_attention.defvjp(_forward, _backward)
