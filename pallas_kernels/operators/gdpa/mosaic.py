"""gdpa as fused Mosaic GPU kernels: one streaming kernel, three times (`pallas_kernels.mosaic.sm90` and `sm100`).

Forward: the queries stay, keys and values stream. dq: queries and cotangent stay, keys and values stream. dk and dv:
keys and values stay, queries and cotangent stream; no block adds to what another one writes, so results do not depend
on the order of the blocks. Each of the three computes the scores, so the backward pass does 14 H d N FLOPs where 10
would do; in exchange it keeps only q, k and v and is the same bit for bit each time.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int

from pallas_kernels.mosaic import launch, schedule
from pallas_kernels.mosaic.config import Config
from pallas_kernels.mosaic.score import Score, pointwise
from pallas_kernels.mosaic.tails import Streamed, guarded
from pallas_kernels.mosaic.target import Target


class Static(NamedTuple):
    """What is known of a call when it is traced.

    Attributes:
      activation, pre_scale, post_scale: see `pallas_kernels.gdpa`.
      keys: dense keys of an example, None for jagged ones.
      configs: block sizes by pass.
      chip: to run on.
    """

    activation: str
    pre_scale: float
    post_scale: float
    keys: int | None
    configs: tuple[tuple[str, Config], ...]
    chip: Target

    @classmethod
    def of(cls, q, keys, activation, pre_scale, post_scale, configs=None, operator="gdpa") -> "Static":
        """The one for queries `q` on the chip at hand; `configs` overrides the block sizes by pass."""
        chip = launch.chip_for(operator)
        found = launch.configs_for("gdpa", chip, q.dtype, q.shape[-1], keys, activation, configs)
        return cls(activation, pre_scale, post_scale, keys, tuple(found.items()), chip)

    @property
    def score(self) -> Score:
        """The score function."""
        return pointwise(self.activation, self.pre_scale, self.post_scale)


def gdpa(
    q: Float[Array, "rows heads dim"],
    k: Float[Array, "batch keys heads dim"] | Float[Array, "key_rows heads dim"],
    v: Float[Array, "batch keys heads dim"] | Float[Array, "key_rows heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    key_splits: Int[Array, " splits"] | None = None,
    key_lengths: Int[Array, " batch"] | None = None,
    *,
    activation: str,
    pre_scale: float,
    post_scale: float,
    configs: Mapping[str, Config] | None = None,
) -> Float[Array, "rows heads dim"]:
    """See `pallas_kernels.gdpa`, which asks `launch.refusal` first.

    `configs` overrides the block sizes by pass.
    """
    rows = q.shape[0]
    # Capacities are usually multiples of 8, and so is F; then nothing is copied here. A key of zeros with a value of
    # zeros adds nothing to any output, and its gradient is not kept.
    q = launch.fill(q, 0)
    keys = None
    if k.ndim == 4:
        k, v = launch.fill(k, 1), launch.fill(v, 1)
        batch, keys, heads, dim = k.shape
        k, v = (x.reshape(batch * keys, heads, dim) for x in (k, v))
    else:
        k, v = launch.fill(k, 0), launch.fill(v, 0)
    static = Static.of(q, keys, activation, pre_scale, post_scale, configs)
    out: jax.Array = _gdpa(static, q, k, v, (row_splits, lengths, key_splits, key_lengths))
    return out[:rows]


def _sides(keys, q, k, offsets):
    row_splits, lengths, key_splits, key_lengths = offsets
    queries = schedule.packed(row_splits, lengths, q.shape[0])
    if keys is None:
        return queries, schedule.packed(key_splits, key_lengths, k.shape[0])
    return queries, schedule.dense(lengths.shape[0], keys)


def _of_keys(static, offsets):
    return offsets[2:] if static.keys is None else None


def _run(static, pass_, stationary, streamed, sides, *, sums, offsets=None) -> tuple[jax.Array, ...]:
    """`offsets`: row_splits and lengths of what streams, None if that is the dense keys."""
    config, chip, keys = dict(static.configs)[pass_], static.chip, static.keys if offsets is None else None
    if config.run > 1 and (keys is None or -(-keys // config.block) > config.stages):
        raise ValueError(
            f"gdpa: run={config.run} keeps all streamed tiles of an example, which needs dense keys in at most "
            f"stages={config.stages} tiles of block={config.block} rows; there are {keys} keys"
        )
    ready = Streamed(streamed)
    if offsets is not None:
        ready = guarded(*streamed, *offsets, block=config.block, starts=config.block)
    rows = launch.item_rows(chip, config)
    work = schedule.work_list(*sides, item_rows=rows, balance=keys is None, ends=ready.ends)
    return launch.kernel_of(chip).attend(
        stationary,
        ready.arrays,
        work,
        tails=ready.tails,
        score=static.score,
        sums=sums,
        ragged=keys is None or keys % config.block != 0,
        config=config,
        processors=chip.processors,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gdpa(static, q, k, v, offsets) -> jax.Array:
    return _forward(static, q, k, v, offsets)[0]


@launch.lowered_once
def _forward(static, q, k, v, offsets):
    sides = _sides(static.keys, q, k, offsets)
    (out,) = _run(static, "forward", (q,), (k, v), sides, sums=("value",), offsets=_of_keys(static, offsets))
    return out, (q, k, v, offsets)


@launch.lowered_once
def backward(static: Static, saved, d_out: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    """Gradients of q, k and v, which `saved` holds as the kernels take them, with the offsets; None for the offsets."""
    q, k, v, offsets = saved
    sides, d_out = _sides(static.keys, q, k, offsets), d_out.astype(q.dtype)
    (dq,) = _run(static, "dq", (q, d_out), (k, v), sides, sums=("key",), offsets=_of_keys(static, offsets))
    dk, dv = _run(static, "dkv", (k, v), (q, d_out), sides[::-1], sums=("key", "value"), offsets=offsets[:2])
    return dq, dk, dv, None


_gdpa.defvjp(_forward, backward)
