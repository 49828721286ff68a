"""gdpa by plain XLA: a loop over chunks of tiles, forward and backward, saving q, k and v only.

Memory holds the operands, a copy of q in tiles, and one chunk of scores; time follows the rows in use, not the
capacity. The backward pass recomputes the scores, with keys before queries, so that only one of its five products
contracts over rows.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from pallas_kernels.activations import activation as activation_by_name
from pallas_kernels.dispatch import accumulator, vary_alike, vary_like
from pallas_kernels.xla import tiles


def gdpa(
    q: Float[Array, "rows heads dim"],
    k: Float[Array, "batch keys heads dim"],
    v: Float[Array, "batch keys heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    *,
    activation: str,
    pre_scale: float,
    post_scale: float,
) -> Float[Array, "rows heads dim"]:
    """See `pallas_kernels.gdpa`."""
    return _gdpa(activation, pre_scale, post_scale, *vary_alike(q, k, v, row_splits, lengths))


def _plan(q, k, row_splits, lengths):
    keys, heads = k.shape[1:3]
    rows = -(-q.shape[0] // 8) * 8
    tile = tiles.tile_rows(rows, lengths.shape[0])
    chunk = min(tiles.chunk_tiles(heads * tile * keys), tiles.capacity(rows, lengths.shape[0], tile))
    return tile, chunk, tiles.schedule(row_splits, lengths, rows=rows, tile_rows=tile, chunk=chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _gdpa(activation, pre_scale, post_scale, q, k, v, row_splits, lengths):
    _, heads, dim = q.shape
    acc = accumulator(q.dtype)
    act = activation_by_name(activation)
    tile, chunk, plan = _plan(q, k, row_splits, lengths)
    blocks = tiles.to_blocks(q)
    k, v = (rearrange(x, "batch keys heads dim -> batch heads keys dim") for x in (k, v))

    def body(step, out):
        example, block, count = (jax.lax.dynamic_slice_in_dim(x, step * chunk, chunk) for x in plan[:3])
        q_tile = tiles.gather(blocks, block, count, tile_rows=tile, heads=heads)
        s = jnp.einsum("chqd,chkd->chqk", q_tile, tiles.take(k, example), preferred_element_type=acc)
        p = act.value(pre_scale * s).astype(q.dtype)
        o = post_scale * jnp.einsum("chqk,chkd->chqd", p, tiles.take(v, example), preferred_element_type=acc)
        return tiles.store(out, o, step * chunk, count)

    (out,) = vary_like(q, jnp.zeros((plan.block.shape[0], tile, heads, dim), q.dtype))
    out = jax.lax.fori_loop(0, tiles.quotient(plan.used + (chunk - 1), chunk), body, out)
    return tiles.untile(out, plan.slot, q.shape[0])


def _forward(activation, pre_scale, post_scale, q, k, v, row_splits, lengths):
    out = _gdpa(activation, pre_scale, post_scale, q, k, v, row_splits, lengths)
    return out, (q, k, v, row_splits, lengths)


def _backward(activation, pre_scale, post_scale, saved, d_out):
    q, k, v, row_splits, lengths = saved
    _, heads, dim = q.shape
    acc = accumulator(q.dtype)
    act = activation_by_name(activation)
    tile, chunk, plan = _plan(q, k, row_splits, lengths)
    q_blocks, d_blocks = tiles.to_blocks(q), tiles.to_blocks(d_out.astype(q.dtype))
    k, v = (rearrange(x, "batch keys heads dim -> batch heads keys dim") for x in (k, v))

    def body(step, carry):
        dq, dk, dv = carry
        example, block, count = (jax.lax.dynamic_slice_in_dim(x, step * chunk, chunk) for x in plan[:3])
        q_tile, d_tile = (tiles.gather(x, block, count, tile_rows=tile, heads=heads) for x in (q_blocks, d_blocks))
        k_tile, v_tile = tiles.take(k, example), tiles.take(v, example)
        s = pre_scale * jnp.einsum("chkd,chqd->chkq", k_tile, q_tile, preferred_element_type=acc)
        dp = jnp.einsum("chkd,chqd->chkq", v_tile, d_tile, preferred_element_type=acc)
        p = act.value(s).astype(q.dtype)
        ds = (act.derivative(s) * (pre_scale * post_scale) * dp).astype(q.dtype)
        # Rows past `count` are zero in q_tile and d_tile, so they add nothing here.
        dv = tiles.add(dv, example, post_scale * jnp.einsum("chkq,chqd->chkd", p, d_tile, preferred_element_type=acc))
        dk = tiles.add(dk, example, jnp.einsum("chkq,chqd->chkd", ds, q_tile, preferred_element_type=acc))
        dq_tile = jnp.einsum("chkq,chkd->chqd", ds, k_tile, preferred_element_type=acc)
        return tiles.store(dq, dq_tile, step * chunk, count), dk, dv

    carry = vary_like(
        q,
        jnp.zeros((plan.block.shape[0], tile, heads, dim), q.dtype),
        jnp.zeros(k.shape, acc),
        jnp.zeros(v.shape, acc),
    )
    dq, dk, dv = jax.lax.fori_loop(0, tiles.quotient(plan.used + (chunk - 1), chunk), body, carry)
    dk, dv = (rearrange(x, "batch heads keys dim -> batch keys heads dim").astype(k.dtype) for x in (dk, dv))
    return tiles.untile(dq, plan.slot, q.shape[0]), dk, dv, None, None


_gdpa.defvjp(_forward, _backward)
