"""Kunlun's variants and simple models on MovieLens-1M, without ratings of 3 stars, split 8:1:1 at random.

    python -m experiments.compare movielens --data.root ml-1m

Five minutes a seed on a CPU core, two without histories, all in one shuffled pass; logistic regression on histories
six. DCNv2 and the pooled product come next to Kunlun in `leaderboard_movielens`: "wider" they have 1.5 MFLOPs an
example, as Kunlun has 1.4, and without histories they say what each makes of those. Two passes, the second over
fresh tables, take Kunlun seven minutes, three twelve.
"""

from experiments import boosted_trees, logistic_regression
from experiments.compare import Comparison

TWO_PASSES = "--run.epochs 2 --run.fresh-tables"
THREE_PASSES = "--run.epochs 3 --run.fresh-tables"

COMPARISON = Comparison(
    rows={
        "Kunlun": "kunlun/movielens",
        "embeddings of 24 alone": "kunlun/movielens --model.fm-hidden 128",
        "narrower interaction": "kunlun/movielens --model.embedding-dim 16 --model.fm-hidden 128",
        "dcnv2, wider": "dcnv2/movielens --model.deep-hidden 512 256 --model.cross-rank 64",
        "pooled_product, wider": "pooled_product/movielens --model.head-hidden 256 128",
        "without histories": "kunlun/movielens --model.skip-events '*'",
        "dcnv2 without histories": "dcnv2/movielens --model.skip-events '*'",
        "pooled_product without histories": "pooled_product/movielens --model.skip-events '*'",
        "two passes": f"kunlun/movielens {TWO_PASSES}",
        "dcnv2, two passes": f"dcnv2/movielens {TWO_PASSES}",
        "pooled_product, two passes": f"pooled_product/movielens {TWO_PASSES}",
        "three passes": f"kunlun/movielens {THREE_PASSES}",
        "dcnv2, three passes": f"dcnv2/movielens {THREE_PASSES}",
    },
    others={
        "logistic regression": ("Kunlun", logistic_regression.as_row),
        "LightGBM": ("Kunlun", boosted_trees.as_row),
    },
    seedless=("logistic regression",),
    metric="logloss",
    columns=("valid auc", "valid logloss", "test auc", "test logloss", "test ne", "test calibration"),
)
