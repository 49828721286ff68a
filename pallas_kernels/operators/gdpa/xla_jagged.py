"""gdpa with jagged keys by plain XLA: a loop over the pairs of a query tile and a key tile of one example.

Queries and keys are cut into separate tiles. Time follows the number of pairs; memory holds the operands in tiles, a
float32 sum for each output, and one chunk of scores. Forward and backward save q, k and v only; the backward pass
recomputes the scores, with keys before queries, so that only one of its five products contracts over rows.

No score is masked: the rows of a tile are followed by zeros. A value of zero takes the weight ``Act(0)`` of its key out
of the output and of every gradient, and what a row after the last one gathers is dropped with the row.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.activations import activation as activation_by_name
from pallas_kernels.dispatch import accumulator, vary_alike, vary_like
from pallas_kernels.xla import pairs, tiles

_MOST_KEY_TILE_ROWS = 128


def gdpa(
    q: Float[Array, "rows heads dim"],
    k: Float[Array, "key_rows heads dim"],
    v: Float[Array, "key_rows heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    key_splits: Int[Array, " splits"],
    key_lengths: Int[Array, " batch"],
    *,
    activation: str,
    pre_scale: float,
    post_scale: float,
) -> Float[Array, "rows heads dim"]:
    """See `pallas_kernels.gdpa`."""
    arrays = vary_alike(q, k, v, row_splits, lengths, key_splits, key_lengths)
    return _gdpa(activation, pre_scale, post_scale, *arrays)


class _Plan(NamedTuple):
    """The tiles of a call and their pairs.

    Attributes:
      queries: tiles of the queries.
      keys: tiles of the keys, with one empty tile more than the schedule has at the end.
      numbering: numbers of the pairs.
      shift: for each query tile, what to add to the number of a pair to get its key tile.
    """

    queries: tiles.Schedule
    keys: tiles.Schedule
    numbering: pairs.Numbering
    shift: Int[Array, " tiles"]


def _key_tile_rows(rows: int, batch: int) -> int:
    """Rows of a key tile: as many as of any tile, or more where examples have at least four such tiles on average.

    The wider it is, the fewer sums of outputs a query tile needs for the same scores, but the emptier the last tile of
    an example.
    """
    size = tiles.tile_rows(rows, batch)
    while size < _MOST_KEY_TILE_ROWS and 8 * size * batch <= rows:
        size *= 2
    return size


def _plan(q, k, row_splits, lengths, key_splits, key_lengths) -> tuple[int, int, int, _Plan]:
    """Rows per query tile and per key tile, pairs per step, and the pairs."""
    heads, batch = q.shape[1], lengths.shape[0]
    size, key_size = tiles.tile_rows(q.shape[0], batch), _key_tile_rows(k.shape[0], batch)
    chunk = tiles.chunk_tiles(heads * size * key_size)
    queries, keys = (
        tiles.schedule(*offsets, rows=-(-x.shape[0] // 8) * 8, tile_rows=rows, chunk=1)
        for x, rows, *offsets in ((q, size, row_splits, lengths), (k, key_size, key_splits, key_lengths))
    )
    empty = keys.block.shape[0]
    keys = keys._replace(**{name: jnp.pad(getattr(keys, name), (0, 1)) for name in ("example", "block", "count")})

    tiles_each = tiles.quotient(key_lengths + (key_size - 1), key_size)
    begins = jnp.cumsum(tiles_each, dtype=jnp.int32) - tiles_each
    number, first = (tiles.take(x, queries.example) for x in (tiles_each, begins))
    # A query tile without keys meets the empty key tile, since every tile in use must have a pair.
    each = jnp.where(queries.count > 0, jnp.maximum(number, 1), 0)
    numbering = pairs.numbering(each, chunk)
    shift = jnp.where(number > 0, first, empty) - (numbering.ends[: each.shape[0]] - each)
    return size, key_size, chunk, _Plan(queries, keys, *jax.lax.optimization_barrier((numbering, shift)))


def _chunk_of(plan: _Plan, step, chunk, reached) -> tuple[Int[Array, " chunk"], Int[Array, " chunk"]]:
    """Query tile and key tile of the pairs of a step; entries after the last pair have the empty key tile."""
    index, used, tile = pairs.of_step(plan.numbering, step, chunk, reached, plan.queries.used)
    key_tile = jnp.where(used, index + tiles.take(plan.shift, tile), plan.keys.count.shape[0] - 1)
    return jax.lax.optimization_barrier((tile, key_tile))


def _loop(plan, chunk, body, q, *sums):
    """``body(tile, key_tile, *sums)`` for the pairs of every step, `q` an array that the sums come from."""

    def step(number, carry):
        reached, *sums = carry
        tile, key_tile = _chunk_of(plan, number, chunk, reached)
        return tile[-1], *body(tile, key_tile, *sums)

    steps = tiles.quotient(plan.numbering.number + (chunk - 1), chunk)
    return jax.lax.fori_loop(0, steps, step, vary_like(q, jnp.int32(0), *sums))[1:]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _gdpa(activation, pre_scale, post_scale, q, k, v, *offsets):
    acc = accumulator(q.dtype)
    act = activation_by_name(activation)
    size, key_size, chunk, plan = _plan(q, k, *offsets)
    q_tiles = tiles.cut(q, plan.queries, size)
    k_tiles, v_tiles = (tiles.cut(x, plan.keys, key_size) for x in (k, v))

    def body(tile, key_tile, out):
        k_tile, v_tile = (tiles.take(x, key_tile) for x in (k_tiles, v_tiles))
        s = jnp.einsum("chqd,chkd->chqk", tiles.take(q_tiles, tile), k_tile, preferred_element_type=acc)
        p = act.value(pre_scale * s).astype(q.dtype)
        o = post_scale * jnp.einsum("chqk,chkd->chqd", p, v_tile, preferred_element_type=acc)
        return (tiles.add(out, tile, o),)

    (out,) = _loop(plan, chunk, body, q, jnp.zeros(q_tiles.shape, acc))
    return tiles.join(out, plan.queries, q.dtype, q.shape[0])


def _forward(activation, pre_scale, post_scale, q, k, v, *offsets):
    return _gdpa(activation, pre_scale, post_scale, q, k, v, *offsets), (q, k, v, *offsets)


def _backward(activation, pre_scale, post_scale, saved, d_out):
    q, k, v, *offsets = saved
    acc = accumulator(q.dtype)
    act = activation_by_name(activation)
    size, key_size, chunk, plan = _plan(q, k, *offsets)
    q_tiles, d_tiles = (tiles.cut(x, plan.queries, size) for x in (q, d_out.astype(q.dtype)))
    k_tiles, v_tiles = (tiles.cut(x, plan.keys, key_size) for x in (k, v))

    def body(tile, key_tile, dq, dk, dv):
        q_tile, d_tile = (tiles.take(x, tile) for x in (q_tiles, d_tiles))
        k_tile, v_tile = (tiles.take(x, key_tile) for x in (k_tiles, v_tiles))
        s = pre_scale * jnp.einsum("chkd,chqd->chkq", k_tile, q_tile, preferred_element_type=acc)
        dp = jnp.einsum("chkd,chqd->chkq", v_tile, d_tile, preferred_element_type=acc)
        p = act.value(s).astype(q.dtype)
        ds = (act.derivative(s) * (pre_scale * post_scale) * dp).astype(q.dtype)
        dv_tile = post_scale * jnp.einsum("chkq,chqd->chkd", p, d_tile, preferred_element_type=acc)
        dk_tile = jnp.einsum("chkq,chqd->chkd", ds, q_tile, preferred_element_type=acc)
        dq_tile = jnp.einsum("chkq,chkd->chqd", ds, k_tile, preferred_element_type=acc)
        return tiles.add(dq, tile, dq_tile), tiles.add(dk, key_tile, dk_tile), tiles.add(dv, key_tile, dv_tile)

    sums = (jnp.zeros(x.shape, acc) for x in (q_tiles, k_tiles, v_tiles))
    dq, dk, dv = _loop(plan, chunk, body, q, *sums)
    dq = tiles.join(dq, plan.queries, q.dtype, q.shape[0])
    dk, dv = (tiles.join(x, plan.keys, k.dtype, k.shape[0]) for x in (dk, dv))
    return dq, dk, dv, *(None for _ in offsets)


_gdpa.defvjp(_forward, _backward)
