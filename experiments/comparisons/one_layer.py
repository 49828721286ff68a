"""Kunlun's family of `experiments.scaling_law` with one layer, wider, in place of up to three: are FLOPs lost in depth?

    python -m experiments.compare one_layer

Sizes 2 to 5, within a tenth of the family's FLOPs, at the rate that the law's rule found for every size of it; sizes 0
and 1 have one layer there, too. InterFormer's family has no depth either. Two to ten minutes each on a CPU core.
"""

from experiments.compare import Comparison
from experiments.scaling_families import FAMILIES

WIDER = {
    2: "--model.dim 18 --model.embedding-dim 18 --model.event.dim 18 --model.event.heads 1 --model.event.ffn-width 18 "
    "--model.summary-tokens 4",
    3: "--model.dim 26 --model.embedding-dim 26 --model.event.dim 26 --model.event.heads 1 --model.fm-hidden 96",
    4: "--model.dim 36 --model.embedding-dim 36 --model.event.dim 36",
    5: "--model.dim 56 --model.embedding-dim 56 --model.event.dim 56 --model.event.ffn-width 64 --model.fm-hidden 192",
}
"""Size -> what it has otherwise, as flags."""
COMPARISON = Comparison(
    rows={
        f"one layer, size {size}": f"{FAMILIES['kunlun'][size]} --model.layers 1 --model.event.layers 1 {flags} "
        "--optimizer.learning-rate 0.003"
        for size, flags in WIDER.items()
    },
    seeds=(0, 1, 2),
    columns=("test ne", "valid ne", "flops", "parameters"),
)
