"""seed_attention by plain XLA: a loop over chunks of tiles with a running maximum, saving the log-sum-exp.

The tiles of a chunk belong to consecutive non-empty examples, so the slots of the running softmax are the ranks of the
examples among the non-empty ones. Memory holds the output, the gradients in tiles, and one chunk of scores.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import accumulator, vary_alike, vary_like
from pallas_kernels.xla import softmax, tiles


def seed_attention(
    q: Float[Array, "seeds heads dim"] | Float[Array, "batch seeds heads dim"],
    k: Float[Array, "rows heads dim"],
    v: Float[Array, "rows heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    *,
    scale: float,
) -> Float[Array, "batch seeds heads dim"]:
    """See `pallas_kernels.seed_attention`."""
    return _seed_attention(scale, *vary_alike(q, k, v, row_splits, lengths))


def _plan(q, k, row_splits, lengths):
    seeds, heads, _ = q.shape[-3:]
    rows = -(-k.shape[0] // 8) * 8
    tile = tiles.tile_rows(rows, lengths.shape[0])
    chunk = min(tiles.chunk_tiles(heads * tile * seeds), tiles.capacity(rows, lengths.shape[0], tile))
    return tile, chunk, tiles.schedule(row_splits, lengths, rows=rows, tile_rows=tile, chunk=chunk)


def _queries(q, chunk):
    """Example of each tile -> its seeds, heads in front: its own, or the shared ones repeated for each tile."""
    q = jnp.swapaxes(q, -2, -3)
    if q.ndim == 4:
        return lambda example: tiles.take(q, example)
    shared = jnp.broadcast_to(q, (chunk, *q.shape))
    return lambda example: shared


def _ranks(lengths):
    """For each example, how many non-empty ones come before it."""
    filled = (lengths > 0).astype(jnp.int32)
    return jnp.cumsum(filled, dtype=jnp.int32) - filled


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _seed_attention(scale, q, k, v, row_splits, lengths):
    return _forward(scale, q, k, v, row_splits, lengths)[0]


def _forward(scale, q, k, v, row_splits, lengths):
    seeds, heads, dim = q.shape[-3:]
    acc = accumulator(q.dtype)
    tile, chunk, plan = _plan(q, k, row_splits, lengths)
    k_blocks, v_blocks = tiles.to_blocks(k), tiles.to_blocks(v)
    queries = _queries(q, chunk)
    rank = _ranks(lengths)

    def body(step, running):
        example, block, count = (jax.lax.dynamic_slice_in_dim(x, step * chunk, chunk) for x in plan[:3])
        k_tile, v_tile = (tiles.gather(x, block, count, tile_rows=tile, heads=heads) for x in (k_blocks, v_blocks))
        s = scale * jnp.einsum("chsd,chkd->chsk", queries(example), k_tile, preferred_element_type=acc)
        s = jnp.where(tiles.valid(count, tile)[:, None, None, :], s, -jnp.inf)
        first = tiles.take(rank, example[0])
        # An empty tile counts as one of example 0; all of its scores are masked, so it may go to any slot.
        return softmax.merge(running, s, v_tile, jnp.maximum(tiles.take(rank, example) - first, 0), first)

    # A chunk that starts at the last example still has its slots in range.
    running = softmax.start(k, lengths.shape[0] + chunk, heads, seeds, dim, acc)
    running = jax.lax.fori_loop(0, tiles.quotient(plan.used + (chunk - 1), chunk), body, running)
    filled = (lengths > 0)[:, None, None]
    out, log_sum = softmax.finish(
        softmax.Running(
            tiles.take(running.maximum, rank),
            jnp.where(filled, tiles.take(running.total, rank), 0),
            tiles.take(running.out, rank),
        )
    )
    out = jnp.where(filled[..., None], out, 0)
    out = rearrange(out, "batch heads seeds dim -> batch seeds heads dim").astype(q.dtype)
    return out, (q, k, v, row_splits, lengths, out, log_sum)


def _backward(scale, saved, d_out):
    q, k, v, row_splits, lengths, out, log_sum = saved
    seeds, heads, dim = q.shape[-3:]
    acc = accumulator(q.dtype)
    tile, chunk, plan = _plan(q, k, row_splits, lengths)
    k_blocks, v_blocks = tiles.to_blocks(k), tiles.to_blocks(v)
    queries, shared = _queries(q, chunk), q.ndim == 3
    delta = jnp.einsum("bshd,bshd->bhs", d_out.astype(acc), out.astype(acc))
    d_out = rearrange(d_out, "batch seeds heads dim -> batch heads seeds dim")

    def body(step, carry):
        dq, dk, dv = carry
        example, block, count = (jax.lax.dynamic_slice_in_dim(x, step * chunk, chunk) for x in plan[:3])
        k_tile, v_tile = (tiles.gather(x, block, count, tile_rows=tile, heads=heads) for x in (k_blocks, v_blocks))
        d_tile = tiles.take(d_out, example)
        q_tile = queries(example)
        s = scale * jnp.einsum("chkd,chsd->chks", k_tile, q_tile, preferred_element_type=acc)
        s = jnp.where(tiles.valid(count, tile)[:, None, :, None], s, -jnp.inf)
        p = jnp.exp(s - tiles.take(log_sum, example)[:, :, None, :])
        dp = jnp.einsum("chkd,chsd->chks", v_tile, d_tile, preferred_element_type=acc)
        ds = (p * (dp - tiles.take(delta, example)[:, :, None, :]) * scale).astype(q.dtype)
        dv_tile = jnp.einsum("chks,chsd->chkd", p.astype(q.dtype), d_tile, preferred_element_type=acc)
        dk_tile = jnp.einsum("chks,chsd->chkd", ds, q_tile, preferred_element_type=acc)
        dq_tile = jnp.einsum("chks,chkd->chsd", ds, k_tile, preferred_element_type=acc)
        # The scores of an empty tile are all masked, so what it adds to example 0 is zero.
        dq = dq + dq_tile.sum(axis=0) if shared else tiles.add(dq, example, dq_tile)
        return dq, tiles.store(dk, dk_tile, step * chunk, count), tiles.store(dv, dv_tile, step * chunk, count)

    shape = (plan.block.shape[0], tile, heads, dim)
    dq = jnp.zeros((*q.shape[:-3], heads, seeds, dim), acc)
    carry = vary_like(k, dq, jnp.zeros(shape, k.dtype), jnp.zeros(shape, v.dtype))
    dq, dk, dv = jax.lax.fori_loop(0, tiles.quotient(plan.used + (chunk - 1), chunk), body, carry)
    dq = jnp.swapaxes(dq, -2, -3).astype(q.dtype)
    dk, dv = (tiles.untile(x, plan.slot, k.shape[0]) for x in (dk, dv))
    return dq, dk, dv, None, None


_seed_attention.defvjp(_forward, _backward)
