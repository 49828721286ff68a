"""Every system and two simple models on MovieLens-1M, the last tenth of each user's ratings for test, five seeds.

    python -m experiments.compare leaderboard_movielens_last --data.root ml-1m
    make leaderboard

Each system has its preset's rate and nothing is searched for: `leaderboard_movielens` found them on "valid" of the
random split by a search that is the same for all. Ratings of 3 stars are examples, so a run takes a third longer. Rows
are shuffled, since that is what the presets have.
"""

from experiments.comparisons.leaderboard_kuairand import leaderboard

COMPARISON = leaderboard("movielens --data.split last --run.eval-splits valid test test_frozen", frozen=True)
