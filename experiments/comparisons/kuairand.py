"""Kunlun's variants and simple models on KuaiRand-Pure; frozen splits cut histories and rates early.

    python -m experiments.compare kuairand --data.root KuaiRand-Pure

Three to six minutes a seed on two CPU cores, logistic regression two; on one core eight with GDPA. Kunlun was chosen on
"valid". DLRM and DCNv2 are what Kunlun is level with in `leaderboard_kuairand`; without histories, two minutes a seed,
they say what each makes of those.
"""

from experiments import boosted_trees, logistic_regression
from experiments.compare import Comparison

COMPARISON = Comparison(
    rows={
        "Kunlun": "kunlun/kuairand",
        "with GDPA": "kunlun/kuairand --model.pattern pool+ffn --model.ffn-layer-scale 0.01",
        "without histories": "kunlun/kuairand --model.skip-events '*'",
        "dlrm without histories": "dlrm/kuairand --model.skip-events '*'",
        "dcnv2 without histories": "dcnv2/kuairand --model.skip-events '*'",
    },
    others={
        "logistic regression": ("Kunlun", logistic_regression.as_row),
        "LightGBM": ("Kunlun", boosted_trees.as_row),
    },
    seedless=("logistic regression",),
    metric="logloss",
    seeds=(0, 1, 2),
    columns=(
        "valid auc",
        "valid logloss",
        "valid calibration",
        "test auc",
        "test logloss",
        "test ne",
        "test calibration",
        "test gauc",
        "test_frozen gauc",
        "test_frozen auc",
    ),
)
