"""DLRM: dot products of embeddings and means, 1.4 MFLOPs an example, on the data of kunlun/movielens.

    python -m experiments.train dlrm/movielens --data.root ml-1m

Cost: four minutes on a CPU core. Score, means of five seeds: valid LogLoss .3197, test AUC .8900, NE .6084 (commit
3d58d8b, `experiments/results/cpu/leaderboard_movielens.json`).
"""

import dataclasses

from experiments.configs.dlrm import kuairand
from experiments.configs.kunlun import movielens

CONFIG = dataclasses.replace(
    movielens.CONFIG,
    model=dataclasses.replace(kuairand.CONFIG.model, dim=32, embedding_dim=16, head_hidden=(512, 256)),
    optimizer=dataclasses.replace(movielens.CONFIG.optimizer, learning_rate=4e-3),
)
