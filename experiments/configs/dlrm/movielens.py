"""DLRM: dot products of embeddings and means, 1.4 MFLOPs an example, on the data of kunlun/movielens.

    python -m experiments.train dlrm/movielens --data.root ml-1m

Cost: four minutes on a CPU core. Score with ``--model.embedding-scale 0.1``, means of five seeds: valid LogLoss .3223,
test AUC .8881, NE .6131 (commit fb3ad8f, `experiments/results/cpu/leaderboard_movielens.json`).
"""

import dataclasses

from experiments.configs.dlrm import kuairand
from experiments.configs.kunlun import movielens

CONFIG = dataclasses.replace(
    movielens.CONFIG,
    model=dataclasses.replace(kuairand.CONFIG.model, dim=32, embedding_dim=16, head_hidden=(512, 256)),
    optimizer=dataclasses.replace(movielens.CONFIG.optimizer, learning_rate=4e-3),
)
