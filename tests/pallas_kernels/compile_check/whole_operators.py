"""Compiles an operator with its gradients, as a model calls it, and prints the optimized HLO.

A process of its own, as `pallas_kernels.compile_check.worker` is; its arguments are the names of chip and operator.
"""

import functools
import sys

import jax
import jax.numpy as jnp

from pallas_kernels.chips import Chip
from pallas_kernels.compile_check.catalogue import CHIPS
from pallas_kernels.compile_check.worker import compile_for
from pallas_kernels.mosaic import target
from pallas_kernels.operators.gdpa import block_mosaic
from pallas_kernels.operators.gdpa import mosaic as gdpa
from pallas_kernels.operators.seed_attention import mosaic as seed
from pallas_kernels.operators.window_attention import mosaic as window

BATCH, ROWS, KEYS, SEEDS, HEADS, DIM = 64, 64 * 512, 256, 64, 4, 32
SHARED, DENSE, JAGGED, PER_EXAMPLE = (SEEDS,), (BATCH, KEYS), (ROWS,), (BATCH, SEEDS)
GELU = {"activation": "gelu", "pre_scale": 1.0, "post_scale": 1.0}


def own_rows(q, k, v, row_splits, lengths):
    """gdpa whose keys are jagged, too."""
    return gdpa.gdpa(q, k, v, row_splits, lengths, row_splits, lengths, **GELU)


# Function of q, k, v, row_splits, lengths; leading dimensions of q, of k and v, and of the output.
OPERATORS = {
    "gdpa": (functools.partial(gdpa.gdpa, **GELU), JAGGED, DENSE, JAGGED),
    "gdpa, jagged keys": (own_rows, JAGGED, JAGGED, JAGGED),
    "gdpa_block": (functools.partial(block_mosaic.gdpa_block, **GELU), JAGGED, DENSE, JAGGED),
    "window_attention": (
        functools.partial(window.window_attention, window=(100, 100), scale=1.0),
        JAGGED,
        JAGGED,
        JAGGED,
    ),
    "seed_attention": (functools.partial(seed.seed_attention, scale=1.0), SHARED, JAGGED, PER_EXAMPLE),
}


def optimized(chip: Chip, function, queries, keys, out) -> str:
    """The HLO of output and gradients."""
    generation = next(name for name, known in target.GENERATIONS.items() if known is chip)

    def run(row_splits, lengths, q, k, v, d_out):
        with target.build_for(target.Target(generation, chip.multiprocessors)):
            result, pullback = jax.vjp(lambda *operands: function(*operands, row_splits, lengths), q, k, v)
            return result, pullback(d_out)

    rows = [jax.ShapeDtypeStruct((*leading, HEADS, DIM), jnp.bfloat16) for leading in (queries, keys, keys, out)]
    offsets = [jax.ShapeDtypeStruct((number,), jnp.int32) for number in (BATCH + 1, BATCH)]
    text = compile_for(chip, run, (*offsets, *rows)).as_text()
    assert text is not None
    return text


if __name__ == "__main__":
    print(optimized(CHIPS[sys.argv[1]], *OPERATORS[sys.argv[2]]))
