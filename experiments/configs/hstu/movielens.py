"""HSTU: one causal sequence with the candidate last, 1.4 MFLOPs an example, on the data of kunlun/movielens.

    python -m experiments.train hstu/movielens --data.root ml-1m

Cost: nine minutes on a CPU core. Score, means of five seeds: valid LogLoss .3247, test AUC .8863, NE .6172 (commits
cf0ac74 and e16c57e, `experiments/results/cpu/leaderboard_movielens.json`).
"""

import dataclasses

from experiments.configs.hstu import kuairand
from experiments.configs.kunlun import movielens

CONFIG = dataclasses.replace(
    movielens.CONFIG,
    model=dataclasses.replace(kuairand.CONFIG.model, dim=16, layers=2, embedding_dim=16, candidate_hidden=(128,)),
    optimizer=dataclasses.replace(movielens.CONFIG.optimizer, learning_rate=4e-3),
)
