"""Kunlun's variants and simple models on MovieLens-1M, without ratings of 3 stars, split 8:1:1 at random.

    python -m experiments.compare movielens --data.root ml-1m

Six minutes a seed on a CPU core, seven with GDPA, two without histories, all in one shuffled pass; logistic regression
on histories six. Embeddings of 24 are those of DCNv2. DCNv2 and the pooled product are what Kunlun is level with in
`leaderboard_movielens`; without histories they say what each makes of those. "wider" makes each of
the three 1.4 to 1.5 MFLOPs an example. Two passes, the second over fresh tables, are not run yet. The trees have one
seed.
"""

from experiments.compare import Comparison
from experiments.logistic_regression import as_row
from experiments.shallow import trees_as_row

WIDER = "kunlun/movielens --model.embedding-dim 24 --model.fm-hidden 256"
TWO_PASSES = "--run.epochs 2 --run.fresh-tables"

COMPARISON = Comparison(
    rows={
        "Kunlun": "kunlun/movielens",
        "with GDPA": "kunlun/movielens --model.pattern pool+ffn --model.ffn-layer-scale 0.01",
        "embeddings of 24": "kunlun/movielens --model.embedding-dim 24",
        "wider interaction": WIDER,
        "wider interaction, rate 1e-3": f"{WIDER} --optimizer.learning-rate 1e-3",
        "wider interaction, rate 4e-3": f"{WIDER} --optimizer.learning-rate 4e-3",
        "dcnv2, wider": "dcnv2/movielens --model.deep-hidden 512 256 --model.cross-rank 64",
        "pooled_product, wider": "pooled_product/movielens --model.head-hidden 256 128",
        "without histories": "kunlun/movielens --model.skip-events '*'",
        "dcnv2 without histories": "dcnv2/movielens --model.skip-events '*'",
        "pooled_product without histories": "pooled_product/movielens --model.skip-events '*'",
        "two passes": f"kunlun/movielens {TWO_PASSES}",
        "dcnv2, two passes": f"dcnv2/movielens {TWO_PASSES}",
        "pooled_product, two passes": f"pooled_product/movielens {TWO_PASSES}",
    },
    others={"logistic regression": ("Kunlun", as_row), "boosted trees": ("Kunlun", trees_as_row)},
    seedless=("logistic regression",),
    metric="logloss",
    columns=("valid auc", "valid logloss", "test auc", "test logloss", "test ne", "test calibration"),
)
