"""window_attention as fused Mosaic GPU kernels: one streaming kernel, three times (`pallas_kernels.mosaic`).

Forward and dq: a tile of queries stays, and the keys and values from `left` rows before its first row to `right` rows
after its last one stream past it; other tiles are never loaded. dk and dv: a tile of keys stays, and the queries that
can read it stream. So time follows the rows times the window, however long the sequence. Scores outside the window are
masked only in the tiles at its edges. Heads of keys may be shared by several heads of queries.

ROTE's rotation is not done inside: XLA rotates queries and keys in the pass that splits the projection, which has to
write them anyway.
"""

import functools
from collections.abc import Mapping

import jax
from jaxtyping import Array, Float, Int

from pallas_kernels.mosaic import launch, schedule
from pallas_kernels.mosaic.config import Config
from pallas_kernels.mosaic.score import softmax
from pallas_kernels.mosaic.tails import ANY_START, guarded


def window_attention(
    q: Float[Array, "rows heads dim"],
    k: Float[Array, "rows key_heads dim"],
    v: Float[Array, "rows key_heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    *,
    window: tuple[int, int],
    scale: float,
    configs: Mapping[str, Config] | None = None,
) -> Float[Array, "rows heads dim"]:
    """See `pallas_kernels.window_attention`, which asks `launch.refusal` first.

    `configs` overrides the block sizes by pass.
    """
    rows = q.shape[0]
    q, k, v = (launch.fill(x, 0) for x in (q, k, v))
    left, right = (min(side, rows) for side in window)
    chip = launch.chip_for("window_attention")
    reach = None if max(left, right) == rows else left + right + 1
    found = launch.configs_for("window_attention", chip, q.dtype, q.shape[-1], reach, "softmax", configs)
    out: jax.Array = _window_attention((left, right, scale, tuple(found.items()), chip), q, k, v, row_splits, lengths)
    return out[:rows]


def _run(stationary, streamed, offsets, window, *, chip, config, statistics=(), **arguments):
    (x, y), (row_splits, lengths), rows = streamed, offsets, launch.item_rows(chip, config)
    side = schedule.packed(row_splits, lengths, x.shape[0])
    # Each item streams from where its own window begins.
    ready = guarded(x, y, row_splits, lengths, block=config.block, starts=ANY_START)
    work = schedule.work_list(side, side, item_rows=rows, balance=True, window=window, ends=ready.ends)
    return launch.kernel_of(chip).attend(
        stationary,
        ready.arrays,
        work,
        tails=ready.tails,
        statistics=statistics,
        window=window,
        ragged=True,
        config=config,
        processors=chip.processors,
        **arguments,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _window_attention(static, q, k, v, row_splits, lengths) -> jax.Array:
    return _forward(static, q, k, v, row_splits, lengths)[0]


@launch.lowered_once
def _forward(static, q, k, v, row_splits, lengths):
    left, right, scale, items, chip = static
    arguments = {"score": softmax(scale), "config": dict(items)["forward"], "chip": chip}
    out, log_sum = _run((q,), (k, v), (row_splits, lengths), (left, right), sums=("value",), **arguments)
    return out, (q, k, v, row_splits, lengths, out, log_sum)


@launch.lowered_once
def _backward(static, saved, d_out):
    left, right, scale, items, chip = static
    configs = dict(items)
    q, k, v, row_splits, lengths, out, log_sum = saved
    offsets, d_out = (row_splits, lengths), d_out.astype(q.dtype)
    statistics = (log_sum, launch.delta(d_out, out))
    arguments = {"score": softmax(scale), "statistics": statistics, "chip": chip}
    (dq,) = _run((q, d_out), (k, v), offsets, (left, right), sums=("key",), config=configs["dq"], **arguments)
    dk, dv = _run((k, v), (q, d_out), offsets, (right, left), sums=("key", "value"), config=configs["dkv"], **arguments)
    return dq, dk, dv, None, None


_window_attention.defvjp(_forward, _backward)
