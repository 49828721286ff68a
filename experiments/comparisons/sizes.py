"""Do depth and width pay? kunlun/small with one and two layers and at half its width, at 150,000 rows.

    python -m experiments.compare sizes

Three to six minutes per seed on two CPU cores. `experiments.comparisons.sizes_600k` has four times the rows.
"""

from experiments.compare import Comparison

SIZES = {
    "three layers": "",
    "two layers": "--model.layers 2",
    "one layer": "--model.layers 1",
    "half as wide": "--model.dim 16 --model.embedding-dim 16 --model.event.dim 16",
}
COLUMNS = ("test ne", "valid ne", "flops", "parameters")
COMPARISON = Comparison(rows={name: f"kunlun/small {flags}".strip() for name, flags in SIZES.items()}, columns=COLUMNS)
