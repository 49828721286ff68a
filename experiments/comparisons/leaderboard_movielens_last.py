"""Every system and boosted trees on MovieLens-1M, the last tenth of each user's ratings for test: as
`leaderboard_movielens`.

    python -m experiments.compare leaderboard_movielens_last --data.root ml-1m
    make leaderboard

Ratings of 3 stars are examples here, so a run takes a third longer. It has not been run.
"""

from experiments.compare import Comparison
from experiments.comparisons.leaderboard_kuairand import RATES, SYSTEMS
from experiments.shallow import trees_as_row

COMPARISON = Comparison(
    rows={name: f"{name}/movielens --data.options.split last" for name in SYSTEMS},
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
        "test_frozen gauc",
        "flops",
        "parameters",
        "examples/s",
    ),
)
