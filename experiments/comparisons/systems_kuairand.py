"""Kunlun, and every other system at some four times its FLOPs, on KuaiRand-Pure with its optimizer and passes.

    python -m experiments.compare systems_kuairand --data.root KuaiRand-Pure

Three to six minutes per seed on two CPU cores. Learning rates were chosen for Kunlun and not tuned for the others.
"""

from experiments.compare import Comparison
from experiments.comparisons.systems import NAMES

COMPARISON = Comparison(
    rows={"kunlun": "kunlun/kuairand"} | {name: f"{name}/kuairand" for name in NAMES},
    metric="logloss",
    columns=(
        "valid logloss",
        "valid auc",
        "test logloss",
        "test auc",
        "test ne",
        "test_frozen gauc",
        "flops",
        "parameters",
        "examples/s",
    ),
)
