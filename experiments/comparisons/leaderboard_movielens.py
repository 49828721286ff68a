"""Every system and boosted trees on MovieLens-1M, split 8:1:1 at random: the same search of a rate, five seeds.

    python -m experiments.compare leaderboard_movielens --data.root ml-1m
    make leaderboard

Rates as in leaderboard_kuairand; models are those of KuaiRand's presets, so seven runs of some 20 minutes for each on
two CPU cores. `leaderboard_movielens_last` has the split by time. It has not been run.
"""

from experiments.compare import Comparison
from experiments.comparisons.leaderboard_kuairand import RATES, SYSTEMS
from experiments.shallow import trees_as_row

COMPARISON = Comparison(
    rows={name: f"{name}/movielens" for name in SYSTEMS},
    others={"boosted trees": ("kunlun", trees_as_row)},
    metric="logloss",
    seeds=(0, 1, 2, 3, 4),
    search=tuple(f"--optimizer.learning-rate {rate}" for rate in RATES),
    columns=(
        "valid logloss",
        "test auc",
        "test logloss",
        "test ne",
        "test gauc",
        "flops",
        "parameters",
        "examples/s",
    ),
)
