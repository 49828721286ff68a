"""Every system and boosted trees on MovieLens-1M, the last tenth of each user's ratings for test: as
`leaderboard_movielens`.

    python -m experiments.compare leaderboard_movielens_last --data.root ml-1m
    make leaderboard

Ratings of 3 stars are examples here, so a run takes a third longer. Rows are shuffled here, too, since that is what
the presets have. It has not been run.
"""

from experiments.comparisons.leaderboard_kuairand import leaderboard
from experiments.comparisons.leaderboard_movielens import RATES

COMPARISON = leaderboard(
    "movielens --data.split last --run.eval-splits valid test test_frozen", rates=RATES, frozen=True
)
