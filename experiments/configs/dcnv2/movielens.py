"""DCNv2: a low-rank cross network beside a deep one, 1.2 MFLOPs an example, on the data of kunlun/movielens.

    python -m experiments.train dcnv2/movielens --data.root ml-1m

Cost: two minutes on a CPU core. Score, means of five seeds: valid LogLoss .3133, test AUC .8952, NE .5954 (commit
3d58d8b, `experiments/results/cpu/leaderboard_movielens.json`).
"""

import dataclasses

from experiments.configs.dcnv2 import kuairand
from experiments.configs.kunlun import movielens

CONFIG = dataclasses.replace(
    movielens.CONFIG,
    model=dataclasses.replace(kuairand.CONFIG.model, dim=24, embedding_dim=24, cross_rank=32, deep_hidden=(448, 224)),
    optimizer=dataclasses.replace(movielens.CONFIG.optimizer, learning_rate=4e-3),
)
