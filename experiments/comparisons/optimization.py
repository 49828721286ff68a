"""Which rates, batch and passes learn most from few rows? kunlun/small on 37,500 rows of the synthetic world.

    python -m experiments.compare optimization

One thing changed per row, judged on "valid". One to two minutes per seed on two CPU cores, four for the smallest batch.
"""

from experiments.compare import Comparison

FEW = "kunlun/small --data.train-rows 37500"
CHANGED = {
    "batch 128": "--loader.batch-size 128",
    "batch 64": "--loader.batch-size 64",
    "batch 64, rate 2e-3": "--loader.batch-size 64 --optimizer.learning-rate 2e-3",
    "batch 64, tables .05": "--loader.batch-size 64 --optimizer.table-learning-rate 0.05",
    "rate 2e-3": "--optimizer.learning-rate 2e-3",
    "rate 8e-3": "--optimizer.learning-rate 8e-3",
    "tables .05": "--optimizer.table-learning-rate 0.05",
    "tables .2": "--optimizer.table-learning-rate 0.2",
    "warm-up of a fifth": "--optimizer.warmup 0.2",
    "constant rate": "--optimizer.decay none",
    "half a cosine": "--optimizer.decay cosine",
    "embeddings of 16": "--model.embedding-dim 16",
    "embeddings of 64": "--model.embedding-dim 64",
    "two passes": "--run.epochs 2",
    "two passes, fresh tables": "--run.epochs 2 --run.fresh-tables",
}
COMPARISON = Comparison(
    rows={"batch 256, rate 4e-3, tables .1": FEW} | {name: f"{FEW} {flags}" for name, flags in CHANGED.items()},
    split="valid",
    columns=("valid ne", "test ne"),
)
