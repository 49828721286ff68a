"""Jagged operators of Kunlun: `gdpa`, the block around it, `window_attention` and `seed_attention`.

Each takes ``implementation=``, None to pick by platform; `pallas_kernels.jagged` describes the layout of rows.
"""

from pallas_kernels.operators.gdpa.api import gdpa
from pallas_kernels.operators.gdpa.block import gdpa_block
from pallas_kernels.operators.seed_attention.api import seed_attention
from pallas_kernels.operators.window_attention.api import window_attention

__all__ = ["gdpa", "gdpa_block", "seed_attention", "window_attention"]
