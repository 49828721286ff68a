"""InterFormer: two-way summaries and attention, 1.6 MFLOPs an example, on the data of kunlun/movielens.

    python -m experiments.train interformer/movielens --data.root ml-1m

Cost: ten minutes on a CPU core. Score, means of three seeds: valid LogLoss .3214, test AUC .8886, NE .6113 (commit
c6af414, `experiments/results/cpu/leaderboard_movielens.json`).
"""

import dataclasses

from experiments.configs.interformer import kuairand
from experiments.configs.kunlun import movielens

CONFIG = dataclasses.replace(
    movielens.CONFIG,
    model=dataclasses.replace(kuairand.CONFIG.model, dim=16, embedding_dim=16, cross_rank=8, interaction_hidden=(32,)),
)
