"""Every system and two simple models on MovieLens-1M, split 8:1:1 at random: the same search of a rate, five seeds.

    python -m experiments.compare leaderboard_movielens --data.root ml-1m
    make leaderboard

As leaderboard_kuairand with rates four times as high, in one pass in place of two: 2e-3 is the best for Kunlun here,
and 4e-3, which was the end of what was tried, for DLRM. That pass is shuffled, since splits are drawn at random. Models
have 1.2 to 1.6 MFLOPs an example. Eight runs of two to ten minutes for each on a CPU core; LightGBM's search takes
28, its seeds eight each. `leaderboard_movielens_last` has the split by time.
"""

from experiments.comparisons.leaderboard_kuairand import leaderboard

COMPARISON = leaderboard("movielens", rates=("1e-3", "2e-3", "4e-3", "8e-3"), frozen=False)
