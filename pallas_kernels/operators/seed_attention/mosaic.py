"""seed_attention as fused Mosaic GPU kernels: one streaming kernel, three times (`pallas_kernels.mosaic`).

Forward and dq: the seeds stay, and the keys and values of an example stream past them; a work item is an example.
Where examples, heads and tiles of seeds are fewer than multiprocessors, each example's keys are cut into parts that are
separate items, and their results are merged by their log-sum-exps. dk and dv: the keys stay, the seeds and their
cotangents stream. Seeds that the batch shares are stored once; the gradient of each example is written in float32, and
their sum is one reduction: no atomics, so it is the same bit for bit each time.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from pallas_kernels.mosaic import launch, schedule
from pallas_kernels.mosaic.config import Config
from pallas_kernels.mosaic.schedule import Side
from pallas_kernels.mosaic.score import softmax
from pallas_kernels.mosaic.tails import ANY_START, guarded

MOST_PARTS = 32
"""Most parts into which the keys of an example are cut: each costs an output to be merged."""


def seed_attention(
    q: Float[Array, "seeds heads dim"] | Float[Array, "batch seeds heads dim"],
    k: Float[Array, "rows heads dim"],
    v: Float[Array, "rows heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    *,
    scale: float,
    configs: Mapping[str, Config] | None = None,
) -> Float[Array, "batch seeds heads dim"]:
    """See `pallas_kernels.seed_attention`, which asks `launch.refusal` first.

    `configs` overrides the block sizes by pass.
    """
    seeds, shared = q.shape[-3], q.ndim == 3
    k, v = (launch.fill(x, 0) for x in (k, v))
    q = launch.fill(q, q.ndim - 3).reshape(-1, *q.shape[-2:])
    chip = launch.chip_for("seed_attention")
    found = launch.configs_for("seed_attention", chip, q.dtype, q.shape[-1], seeds, "softmax", configs)
    static = (seeds, shared, scale, tuple(found.items()), chip)
    return _seed_attention(static, q, k, v, row_splits, lengths)


def parts_of(chip_processors: int, items: int, rows: int, batch: int, block: int) -> int:
    """Parts of each example's keys that give every multiprocessor an item, where there are enough keys for that."""
    wanted = -(-chip_processors // max(1, items))
    return max(1, min(wanted, MOST_PARTS, rows // batch // block))


def _padded(seeds: int) -> int:
    return -(-seeds // 8) * 8


def seed_side(seeds: int, number: int) -> Side:
    """The side of ``[number * padded seeds, ...]``."""
    padded = _padded(seeds)
    start = jnp.arange(number, dtype=jnp.int32) * padded
    return Side(start, jnp.full(number, seeds, jnp.int32), jnp.full(number, padded, jnp.int32), number * padded)


def _against_keys(static, pass_, k, v, row_splits, lengths):
    """The number of parts of the keys, keys and values to be streamed, and the work list of the queries that stay."""
    seeds, shared, _, items, chip = static
    config, batch, heads = dict(items)[pass_], lengths.shape[0], k.shape[1]
    rows = launch.item_rows(chip, config)
    parts = parts_of(chip.processors, batch * heads * -(-seeds // rows), k.shape[0], batch, config.block)
    keys = schedule.split(schedule.packed(row_splits, lengths, k.shape[0]), parts)
    starts = config.block if parts == 1 else ANY_START
    ready = guarded(k, v, row_splits, lengths, block=config.block, starts=starts)
    ends = ready.ends and ready.ends.of_parts(parts)
    work = schedule.work_list(seed_side(seeds, batch * parts), keys, item_rows=rows, balance=True, ends=ends)
    copies = batch * parts if shared else parts
    return parts, ready, schedule.share_queries(work, _padded(seeds), copies=copies, of=schedule.ROW)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _seed_attention(static, q, k, v, row_splits, lengths):
    return _forward(static, q, k, v, row_splits, lengths)[0]


@launch.lowered_once
def _forward(static, q, k, v, row_splits, lengths):
    seeds, _, scale, items, chip = static
    configs, batch = dict(items), lengths.shape[0]
    parts, keys, work = _against_keys(static, "forward", k, v, row_splits, lengths)
    out, log_sum = launch.kernel_of(chip).attend(
        (q,),
        keys.arrays,
        work,
        tails=keys.tails,
        score=softmax(scale),
        sums=("value",),
        ragged=True,
        config=configs["forward"],
        processors=chip.processors,
        out_rows=batch * parts * _padded(seeds),
        out_dtype=q.dtype if parts == 1 else jnp.float32,
    )
    if parts > 1:
        out, log_sum = _merge(out, log_sum, batch, parts)
    out = out.astype(q.dtype)
    # The rows after the seeds are zeros, like all rows that an item does not hold.
    result = rearrange(out, "(batch seeds) heads dim -> batch seeds heads dim", batch=batch)[:, :seeds]
    return result, (q, k, v, row_splits, lengths, out, log_sum)


def _merge(out, log_sum, batch, parts):
    """Outputs and log-sum-exps of whole examples from those of their parts, all float32."""
    out = rearrange(out, "(batch parts seeds) heads dim -> batch parts seeds heads dim", batch=batch, parts=parts)
    log_sum = rearrange(log_sum, "heads (batch parts seeds) -> batch parts seeds heads", batch=batch, parts=parts)
    highest = log_sum.max(axis=1, keepdims=True)
    weights = jnp.exp2(log_sum - highest)
    total = weights.sum(axis=1)
    merged = (weights[..., None] * out).sum(axis=1) / total[..., None]
    log_sum = highest[:, 0] + jnp.log2(total)
    merged = rearrange(merged, "batch seeds heads dim -> (batch seeds) heads dim")
    return merged, rearrange(log_sum, "batch seeds heads -> heads (batch seeds)")


@launch.lowered_once
def _backward(static, saved, d_out):
    seeds, shared, scale, items, chip = static
    configs = dict(items)
    q, k, v, row_splits, lengths, out, log_sum = saved
    batch, padded = lengths.shape[0], _padded(seeds)
    d_out = launch.fill(d_out.astype(q.dtype), 1)
    d_out = rearrange(d_out, "batch seeds heads dim -> (batch seeds) heads dim")
    statistics = (log_sum, launch.delta(d_out, out))
    arguments = {"score": softmax(scale), "ragged": True, "processors": chip.processors}
    attend = launch.kernel_of(chip).attend

    parts, keys, work = _against_keys(static, "dq", k, v, row_splits, lengths)
    # Each part of an example's keys is an example of its own, with a copy of the cotangent; there are few of them then.
    own = [_repeat(x, batch, parts, axis) for x, axis in ((d_out, 0), *((x, 1) for x in statistics))]
    (dq,) = attend(
        (q, own[0]),
        keys.arrays,
        work,
        tails=keys.tails,
        statistics=tuple(own[1:]),
        sums=("key",),
        config=configs["dq"],
        out_dtype=jnp.float32,
        out_rows=batch * parts * padded,
        **arguments,
    )
    copies = batch * parts if shared else parts
    dq = rearrange(
        dq, "(examples copies seeds) heads dim -> examples copies seeds heads dim", copies=copies, seeds=padded
    )
    dq = dq.sum(axis=1).reshape(q.shape).astype(q.dtype)

    keys = schedule.packed(row_splits, lengths, k.shape[0])
    rows = launch.item_rows(chip, configs["dkv"])
    work = schedule.work_list(keys, seed_side(seeds, batch), item_rows=rows, balance=False)
    if shared:
        work = schedule.share_queries(work, padded, copies=batch, of=schedule.OTHER_ROW)
    dk, dv = attend(
        (k, v),
        (q, d_out),
        work,
        statistics=statistics,
        sums=("key", "value"),
        config=configs["dkv"],
        **arguments,
    )
    return dq, dk, dv, None, None


def _repeat(x: jax.Array, batch: int, parts: int, axis: int) -> jax.Array:
    """`x` with the rows of each example repeated `parts` times, along the axis of rows."""
    if parts == 1:
        return x
    examples = x.reshape(*x.shape[:axis], batch, -1, *x.shape[axis + 1 :])
    return jnp.repeat(examples, parts, axis=axis).reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


_seed_attention.defvjp(_forward, _backward)
