"""Every system and boosted trees on MovieLens-1M, split 8:1:1 at random: the same search of a rate, five seeds.

    python -m experiments.compare leaderboard_movielens --data.root ml-1m
    make leaderboard

Rates as in leaderboard_kuairand; models have 1.0 to 1.6 MFLOPs an example. Eight runs of some ten minutes for each on a
CPU core. `leaderboard_movielens_last` has the split by time. It has not been run.
"""

from experiments.comparisons.leaderboard_kuairand import leaderboard

COMPARISON = leaderboard("movielens", frozen=False)
