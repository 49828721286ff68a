"""seed_attention by plain XLA: a loop over chunks of tiles with a running maximum, saving the log-sum-exp.

The tiles of a chunk belong to consecutive non-empty examples, so the running maximum, sum and output of just those
examples are sliced out, updated and put back: a step's cost does not depend on the batch. The sums therefore stand by
rank among the non-empty examples until the end.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from pallas_kernels import tiles
from pallas_kernels.dispatch import accumulator, vary_alike, vary_like

TILE_ROWS = 32


def seed_attention(
    q: Float[Array, "seeds heads dim"],
    k: Float[Array, "rows heads dim"],
    v: Float[Array, "rows heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    *,
    scale: float,
) -> Float[Array, "batch seeds heads dim"]:
    """See `pallas_kernels.seed_attention.api.seed_attention`."""
    return _seed_attention(scale, *vary_alike(q, k, v, row_splits, lengths))


def _plan(q, k, row_splits, lengths):
    seeds, heads, _ = q.shape
    rows = -(-k.shape[0] // 8) * 8
    chunk = min(tiles.chunk_tiles(heads * TILE_ROWS * seeds), tiles.capacity(rows, lengths.shape[0], TILE_ROWS))
    return chunk, tiles.schedule(row_splits, lengths, rows=rows, tile_rows=TILE_ROWS, chunk=chunk)


def _ranks(lengths):
    """For each example, how many before it are not empty."""
    filled = (lengths > 0).astype(jnp.int32)
    return jnp.cumsum(filled, dtype=jnp.int32) - filled


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _seed_attention(scale, q, k, v, row_splits, lengths):
    return _forward(scale, q, k, v, row_splits, lengths)[0]


def _forward(scale, q, k, v, row_splits, lengths):
    seeds, heads, dim = q.shape
    batch, acc = lengths.shape[0], accumulator(q.dtype)
    chunk, plan = _plan(q, k, row_splits, lengths)
    k_blocks, v_blocks = tiles.to_blocks(k), tiles.to_blocks(v)
    queries = jnp.broadcast_to(rearrange(q, "seeds heads dim -> heads seeds dim"), (chunk, heads, seeds, dim))
    rank = _ranks(lengths)
    # Finite, so that a difference of two of them is 0 and not NaN; masked scores are -inf and fall below it.
    lowest = jnp.finfo(acc).min

    def body(step, carry):
        example, block, count = (jax.lax.dynamic_slice_in_dim(x, step * chunk, chunk) for x in plan[:3])
        first = rank[example[0]]
        local = jnp.where(count > 0, rank[example] - first, chunk)  # `chunk` is out of range: dropped
        k_tile, v_tile = (
            tiles.gather(x, block, count, tile_rows=TILE_ROWS, heads=heads) for x in (k_blocks, v_blocks)
        )
        valid = jnp.arange(TILE_ROWS, dtype=jnp.int32)[None, :] < count[:, None]
        s = scale * jnp.einsum("chsd,chkd->chsk", queries, k_tile, preferred_element_type=acc)
        s = jnp.where(valid[:, None, None, :], s, -jnp.inf)
        tile_max = jnp.maximum(s.max(axis=-1), lowest)
        p = jnp.exp(s - tile_max[..., None])
        tile_out = jnp.einsum("chsk,chkd->chsd", p.astype(q.dtype), v_tile, preferred_element_type=acc)

        old_max, old_sum, old_out = (jax.lax.dynamic_slice_in_dim(x, first, chunk) for x in carry)
        new_max = old_max.at[local].max(tile_max, mode="drop")
        keep = jnp.exp(old_max - new_max)
        share = jnp.exp(tile_max - new_max.at[local].get(mode="clip"))
        new_sum = (old_sum * keep).at[local].add(p.sum(axis=-1) * share, mode="drop")
        new_out = (old_out * keep[..., None]).at[local].add(tile_out * share[..., None], mode="drop")
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(x, new, first, 0)
            for x, new in zip(carry, (new_max, new_sum, new_out), strict=True)
        )

    slots = batch + chunk  # a chunk that starts at the last example still slices in range
    carry = vary_like(
        k,
        jnp.full((slots, heads, seeds), lowest, acc),
        jnp.zeros((slots, heads, seeds), acc),
        jnp.zeros((slots, heads, seeds, dim), acc),
    )
    maximum, total, out = jax.lax.fori_loop(0, -(-plan.used // chunk), body, carry)
    filled = (lengths > 0)[:, None, None]
    total = jnp.where(filled, total[rank], jnp.ones((), acc))
    log_sum = jnp.where(filled, maximum[rank], jnp.zeros((), acc)) + jnp.log(total)
    out = jnp.where(filled[..., None], out[rank] / total[..., None], jnp.zeros((), acc))
    out = rearrange(out, "batch heads seeds dim -> batch seeds heads dim").astype(q.dtype)
    return out, (q, k, v, row_splits, lengths, out, log_sum)


def _backward(scale, saved, d_out):
    q, k, v, row_splits, lengths, out, log_sum = saved
    seeds, heads, dim = q.shape
    acc = accumulator(q.dtype)
    chunk, plan = _plan(q, k, row_splits, lengths)
    k_blocks, v_blocks = tiles.to_blocks(k), tiles.to_blocks(v)
    queries = jnp.broadcast_to(rearrange(q, "seeds heads dim -> heads seeds dim"), (chunk, heads, seeds, dim))
    delta = jnp.einsum("bshd,bshd->bhs", d_out.astype(acc), out.astype(acc))
    d_out = rearrange(d_out, "batch seeds heads dim -> batch heads seeds dim")

    def body(step, carry):
        dq, dk, dv = carry
        example, block, count = (jax.lax.dynamic_slice_in_dim(x, step * chunk, chunk) for x in plan[:3])
        k_tile, v_tile = (
            tiles.gather(x, block, count, tile_rows=TILE_ROWS, heads=heads) for x in (k_blocks, v_blocks)
        )
        d_tile = d_out[example]
        valid = jnp.arange(TILE_ROWS, dtype=jnp.int32)[None, :] < count[:, None]
        s = scale * jnp.einsum("chkd,chsd->chks", k_tile, queries, preferred_element_type=acc)
        s = jnp.where(valid[:, None, :, None], s, -jnp.inf)
        p = jnp.exp(s - log_sum[example][:, :, None, :])
        dp = jnp.einsum("chkd,chsd->chks", v_tile, d_tile, preferred_element_type=acc)
        ds = (p * (dp - delta[example][:, :, None, :]) * scale).astype(q.dtype)
        dv_tile = jnp.einsum("chks,chsd->chkd", p.astype(q.dtype), d_tile, preferred_element_type=acc)
        dk_tile = jnp.einsum("chks,chsd->chkd", ds, queries, preferred_element_type=acc)
        dq = dq + jnp.einsum("chks,chkd->chsd", ds, k_tile, preferred_element_type=acc).sum(axis=0)
        return dq, tiles.store(dk, dk_tile, step * chunk, count), tiles.store(dv, dv_tile, step * chunk, count)

    shape = (plan.block.shape[0], TILE_ROWS, heads, dim)
    carry = vary_like(k, jnp.zeros((heads, seeds, dim), acc), jnp.zeros(shape, k.dtype), jnp.zeros(shape, v.dtype))
    dq, dk, dv = jax.lax.fori_loop(0, -(-plan.used // chunk), body, carry)
    dq = rearrange(dq, "heads seeds dim -> seeds heads dim").astype(q.dtype)
    dk, dv = (tiles.untile(x, plan.slot, k.shape[0]) for x in (dk, dv))
    return dq, dk, dv, None, None


_seed_attention.defvjp(_forward, _backward)
