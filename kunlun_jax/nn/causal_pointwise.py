"""HSTU's attention over packed sequences: causal, pointwise, with biases of relative position and time.

    A_ij = SiLU(q_i . k_j + b_pos[i - j] + b_time[bucket(t_i - t_j)]) / n,   j <= i in one example
    o_i  = sum_j A_ij v_j

The fused kernels have neither a bias nor a causal mask for this function, so plain XLA runs here: a loop over the pairs
of a query tile and a key tile of one example, the key tile no newer, by the schedule of `pallas_kernels.xla.tiles`.
Time follows the number of pairs; memory holds the operands in tiles and one chunk of scores; nothing is padded to the
longest. The backward pass recomputes the scores.

Source: HSTU, arXiv 2402.17152 (P); the buckets are those of its published code (M): floor(ln(max(1, gap)) / 0.301).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.activations import activation
from pallas_kernels.dispatch import accumulator, vary_alike, vary_like
from pallas_kernels.xla import pairs, tiles

BUCKET_WIDTH = 0.301
"""Width of a bucket, in the natural logarithm of a gap in seconds."""


def causal_pointwise(
    q: Float[Array, "rows heads dim"],
    k: Float[Array, "rows heads dim"],
    v: Float[Array, "rows heads dim"],
    age: Float[Array, " rows"],
    position_bias: Float[Array, " positions"],
    time_bias: Float[Array, " buckets"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    *,
    scale: float,
) -> Float[Array, "rows heads dim"]:
    """The o of each row, zero where there is no event; differentiable once in q, k, v and the two biases.

    Args:
      q: queries, packed as in `pallas_kernels.jagged`; rows without an event may hold anything.
      k: keys, packed likewise, dtype of q.
      v: values, likewise.
      age: seconds, decreasing along each example; the gap between two rows is the difference.
      position_bias: float, by i - j; the last one serves all greater distances.
      time_bias: float, by the bucket of the gap; the last one serves all longer gaps. Heads share both (M).
      row_splits: int32, first row of each example and the end, multiples of 8.
      lengths: int32, rows of each example.
      scale: 1 / n.
    """
    arrays = vary_alike(q, k, v, age, position_bias, time_bias, row_splits, lengths)
    return _attend(float(scale), *arrays)


def time_bucket(gap: Float[Array, "..."], buckets: int) -> Int[Array, "..."]:
    """Bucket of a gap in seconds: 0 up to one second, at most ``buckets - 1``."""
    bucket = jnp.floor(jnp.log(jnp.maximum(gap, 1.0)) / BUCKET_WIDTH).astype(jnp.int32)
    return jnp.minimum(bucket, buckets - 1)


class _Plan(NamedTuple):
    """The tiles and their pairs: tile i of an example meets its tiles 0 .. i.

    Attributes:
      tiles: of queries and keys alike.
      numbering: numbers of the pairs.
      shift: for each tile, what to add to the number of a pair to get its key tile.
      offset: rows of the example before each tile.
    """

    tiles: tiles.Schedule
    numbering: pairs.Numbering
    shift: Int[Array, " tiles"]
    offset: Int[Array, " tiles"]


def _plan(q, row_splits, lengths) -> tuple[int, int, _Plan]:
    """Rows per tile, pairs per step, and the pairs."""
    rows, heads, _ = q.shape
    size = tiles.tile_rows(rows, lengths.shape[0])
    chunk = tiles.chunk_tiles(heads * size * size)
    plan = tiles.schedule(row_splits, lengths, rows=-(-rows // 8) * 8, tile_rows=size, chunk=1)
    used = plan.count > 0
    offset = jnp.where(used, plan.block * tiles.ROW_ALIGNMENT - tiles.take(row_splits, plan.example), 0)
    before = tiles.quotient(offset, size)
    each = jnp.where(used, before + 1, 0)
    numbering = pairs.numbering(each, chunk)
    first = jnp.arange(each.shape[0], dtype=jnp.int32) - before
    shift = first - (numbering.ends[: each.shape[0]] - each)
    return size, chunk, _Plan(plan, *jax.lax.optimization_barrier((numbering, shift, offset)))


def _pairs_of(plan: _Plan, step, size: int, chunk: int, reached):
    """Query tile and key tile of the pairs of a step, the distances i - j, and which of them count."""
    index, used, tile = pairs.of_step(plan.numbering, step, chunk, reached, plan.tiles.used)
    key_tile = jnp.where(used, index + tiles.take(plan.shift, tile), tile)
    row = jnp.arange(size, dtype=jnp.int32)
    queries = tiles.take(plan.offset, tile)[:, None, None] + row[None, :, None]
    keys = tiles.take(plan.offset, key_tile)[:, None, None] + row[None, None, :]
    inside = row[None, :, None] < jnp.where(used, tiles.take(plan.tiles.count, tile), 0)[:, None, None]
    inside &= row[None, None, :] < tiles.take(plan.tiles.count, key_tile)[:, None, None]
    return tile, key_tile, queries - keys, inside & (queries >= keys)


def _bias_index(ages, tile, key_tile, distance, position_bias, time_bias):
    """Where to find the biases of each pair of rows in their tables.

    The barrier keeps the logarithm out of the loop that gathers, where XLA's CPU backend takes it one by one.
    """
    newer, older = (tiles.take(ages, x)[:, 0, :, 0] for x in (tile, key_tile))
    bucket = time_bucket(older[:, None, :] - newer[:, :, None], time_bias.shape[0])
    near = jnp.clip(distance, 0, position_bias.shape[0] - 1)
    return jax.lax.optimization_barrier((near, bucket))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(scale, q, k, v, age, position_bias, time_bias, row_splits, lengths):
    acc, act = accumulator(q.dtype), activation("silu")
    size, chunk, plan = _plan(q, row_splits, lengths)
    q_tiles, k_tiles, v_tiles, ages = (tiles.cut(x, plan.tiles, size) for x in (q, k, v, age[:, None, None]))

    def body(step, carry):
        reached, out = carry
        tile, key_tile, distance, mask = _pairs_of(plan, step, size, chunk, reached)
        near, bucket = _bias_index(ages, tile, key_tile, distance, position_bias, time_bias)
        bias = tiles.take(position_bias, near) + tiles.take(time_bias, bucket)
        k_tile, v_tile = (tiles.take(x, key_tile) for x in (k_tiles, v_tiles))
        s = jnp.einsum("chqd,chkd->chqk", tiles.take(q_tiles, tile), k_tile, preferred_element_type=acc)
        p = jnp.where(mask[:, None], act.value(s + bias[:, None].astype(acc)), 0).astype(q.dtype)
        o = scale * jnp.einsum("chqk,chkd->chqd", p, v_tile, preferred_element_type=acc)
        return tile[-1], tiles.add(out, tile, o)

    steps = tiles.quotient(plan.numbering.number + (chunk - 1), chunk)
    start = vary_like(q, jnp.int32(0), jnp.zeros(q_tiles.shape, acc))
    _, out = jax.lax.fori_loop(0, steps, body, start)
    return tiles.join(out, plan.tiles, q.dtype, q.shape[0])


def _forward(scale, *arrays):
    return _attend(scale, *arrays), arrays


def _backward(scale, saved, d_out):
    q, k, v, age, position_bias, time_bias, row_splits, lengths = saved
    acc, act = accumulator(q.dtype), activation("silu")
    size, chunk, plan = _plan(q, row_splits, lengths)
    q_tiles, k_tiles, v_tiles, d_tiles, ages = (
        tiles.cut(x, plan.tiles, size) for x in (q, k, v, d_out.astype(q.dtype), age[:, None, None])
    )

    def body(step, carry):
        reached, dq, dk, dv, d_position, d_time = carry
        tile, key_tile, distance, mask = _pairs_of(plan, step, size, chunk, reached)
        near, bucket = _bias_index(ages, tile, key_tile, distance, position_bias, time_bias)
        bias = tiles.take(position_bias, near) + tiles.take(time_bias, bucket)
        q_tile, d_tile = (tiles.take(x, tile) for x in (q_tiles, d_tiles))
        k_tile, v_tile = (tiles.take(x, key_tile) for x in (k_tiles, v_tiles))
        s = jnp.einsum("chqd,chkd->chqk", q_tile, k_tile, preferred_element_type=acc) + bias[:, None].astype(acc)
        dp = scale * jnp.einsum("chqd,chkd->chqk", d_tile, v_tile, preferred_element_type=acc)
        p = jnp.where(mask[:, None], act.value(s), 0).astype(q.dtype)
        ds = jnp.where(mask[:, None], act.derivative(s) * dp, 0)
        by_pair = ds.sum(axis=1)
        d_position, d_time = tiles.add(d_position, near, by_pair), tiles.add(d_time, bucket, by_pair)
        ds = ds.astype(q.dtype)
        dq_tile = jnp.einsum("chqk,chkd->chqd", ds, k_tile, preferred_element_type=acc)
        dk_tile = jnp.einsum("chqk,chqd->chkd", ds, q_tile, preferred_element_type=acc)
        dv_tile = scale * jnp.einsum("chqk,chqd->chkd", p, d_tile, preferred_element_type=acc)
        dq, dk, dv = tiles.add(dq, tile, dq_tile), tiles.add(dk, key_tile, dk_tile), tiles.add(dv, key_tile, dv_tile)
        return tile[-1], dq, dk, dv, d_position, d_time

    steps = tiles.quotient(plan.numbering.number + (chunk - 1), chunk)
    sums = (jnp.zeros(x.shape, acc) for x in (q_tiles, k_tiles, v_tiles, position_bias, time_bias))
    _, *rows, d_position, d_time = jax.lax.fori_loop(0, steps, body, vary_like(q, jnp.int32(0), *sums))
    dq, dk, dv = (tiles.join(x, plan.tiles, q.dtype, q.shape[0]) for x in rows)
    biases = d_position.astype(position_bias.dtype), d_time.astype(time_bias.dtype)
    return dq, dk, dv, jnp.zeros_like(age), *biases, None, None


_attend.defvjp(_forward, _backward)
