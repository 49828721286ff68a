"""Do depth and width pay? kunlun/small with one and two layers and at half its width, at 150,000 and 600,000 rows.

    python -m experiments.compare sizes --rows "three layers" "one layer" "half as wide"
    python -m experiments.compare sizes

Three to six minutes per seed at 150,000 rows, 12 to 19 at 600,000, on two CPU cores.
"""

from experiments.compare import Comparison

SIZES = {
    "three layers": "",
    "two layers": "--model.layers 2",
    "one layer": "--model.layers 1",
    "half as wide": "--model.dim 16 --model.embedding-dim 16 --model.event.dim 16",
}
MANY = "--data.train-rows 600000"
COMPARISON = Comparison(
    rows={name: f"kunlun/small {flags}".strip() for name, flags in SIZES.items()}
    | {f"{name}, 600,000 rows": f"kunlun/small {flags} {MANY}" for name, flags in SIZES.items()},
    columns=("test ne", "valid ne", "flops", "parameters"),
)
