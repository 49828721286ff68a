"""OneTrans: one transformer over events and features, 1.4 MFLOPs an example, on the data of kunlun/movielens.

    python -m experiments.train onetrans/movielens --data.root ml-1m

Cost: eight minutes on a CPU core. Score, means of five seeds: valid LogLoss .3217, test AUC .8889, NE .6111 (commits
cf0ac74 and e16c57e, `experiments/results/cpu/leaderboard_movielens.json`).
"""

import dataclasses

from experiments.configs.kunlun import movielens
from experiments.configs.onetrans import kuairand

CONFIG = dataclasses.replace(
    movielens.CONFIG,
    model=dataclasses.replace(kuairand.CONFIG.model, dim=16, embedding_dim=16),
)
