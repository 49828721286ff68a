"""Wukong: stacked factorization machines, 1.3 MFLOPs an example, on the data of kunlun/movielens.

    python -m experiments.train wukong/movielens --data.root ml-1m

Cost: four minutes on a CPU core. Score, means of five seeds: valid LogLoss .3236, test AUC .8871, NE .6153 (commit
c6af414, `experiments/results/cpu/leaderboard_movielens.json`).
"""

import dataclasses

from experiments.configs.kunlun import movielens
from experiments.configs.wukong import kuairand

CONFIG = dataclasses.replace(
    movielens.CONFIG,
    model=dataclasses.replace(kuairand.CONFIG.model, dim=16, embedding_dim=16, fm_rank=8, fm_hidden=(128,)),
    optimizer=dataclasses.replace(movielens.CONFIG.optimizer, learning_rate=4e-3),
)
