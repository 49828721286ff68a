"""The block of the personalized FFN around gdpa: two norms and two residuals.

    q' = LayerNorm(q);   z = gdpa(q', k, v) + q';   out = RMSNorm(z) + q

Norms run over all heads, heads * dim channels of a row, without affine parameters. Where one Mosaic kernel can do the
whole forward pass, it does (`block_mosaic`); elsewhere the norms are XLA's, around any implementation of gdpa. Source:
the block and its norms from Meta's published kernels (M).
"""

import functools
import logging
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from pallas_kernels.operators.gdpa import block_mosaic
from pallas_kernels.operators.gdpa.api import gdpa
from pallas_kernels.operators.gdpa.norms import layer_norm, rms_norm

logger = logging.getLogger(__name__)


def gdpa_block(
    q: Float[Array, "rows heads dim"],
    k: Float[Array, "batch keys heads dim"],
    v: Float[Array, "batch keys heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    *,
    activation: str = "gelu",
    pre_scale: float = 1.0,
    post_scale: float = 1.0,
    implementation: str | None = None,
) -> Float[Array, "rows heads dim"]:
    """``RMSNorm(gdpa(q', k, v) + q') + q`` with ``q' = LayerNorm(q)``; reverse-mode differentiable once in q, k and v.

    Args:
      q: rows of the events, packed as in `pallas_kernels.jagged`.
      k: dense keys, equally many for each example, dtype of q.
      v: values, shape and dtype of k.
      row_splits: int32, first row of each example and the end, multiples of 8.
      lengths: int32, rows of each example.
      activation: see `pallas_kernels.gdpa`, as for the scales.
      pre_scale: factor of the scores.
      post_scale: factor of the output of gdpa.
      implementation: that of gdpa. With None or ``"mosaic"`` the norms are fused where possible; the log says once
        whether they are, and on a GPU why not.

    Returns:
      Outputs in the dtype of q. Rows that hold no event get meaningless values, and no other row depends on them.

    Raises:
      TypeError, ValueError: as `pallas_kernels.gdpa`.
    """
    options = {"activation": activation, "pre_scale": pre_scale, "post_scale": post_scale}
    if implementation in (None, "mosaic"):
        reason = block_mosaic.refusal(q, k, v, row_splits, lengths)
        _log_choice(reason, jax.default_backend())
        if reason is None:
            return block_mosaic.gdpa_block(q, k, v, row_splits, lengths, **options)
    return norms_apart(q, k, v, row_splits, lengths, implementation=implementation, **options)


def norms_apart(
    q: Float[Array, "rows heads dim"],
    k: Float[Array, "batch keys heads dim"],
    v: Float[Array, "batch keys heads dim"],
    row_splits: Int[Array, " splits"],
    lengths: Int[Array, " batch"],
    **options: Any,
) -> Float[Array, "rows heads dim"]:
    """`gdpa_block` with norms and residuals by XLA, and gdpa by any implementation; `options` are those of gdpa."""
    normed = layer_norm(q)
    return rms_norm(gdpa(normed, k, v, row_splits, lengths, **options) + normed) + q


@functools.cache
def _log_choice(reason: str | None, platform: str) -> None:
    """Logs once per process and reason: the cache is what makes it once."""
    if reason is None:
        logger.info("gdpa_block: norms and residuals are fused into the kernel of gdpa, forward")
    elif platform == "gpu":
        logger.info("gdpa_block: norms and residuals by XLA around gdpa, since they cannot be fused: %s", reason)
