"""OneTrans: one transformer over events and features, 1.4 MFLOPs an example, on the data of kunlun/movielens.

    python -m experiments.train onetrans/movielens --data.root ml-1m

Cost: eight minutes on a CPU core. Score, means of three seeds: valid LogLoss .3214, test AUC .8892, NE .6106 (commit
cf0ac74, `experiments/results/cpu/leaderboard_movielens.json`).
"""

import dataclasses

from experiments.configs.kunlun import movielens
from experiments.configs.onetrans import kuairand

CONFIG = dataclasses.replace(
    movielens.CONFIG,
    # Blocks start small and no norm follows them: otherwise the head reads little of the ids (LOG.md).
    model=dataclasses.replace(kuairand.CONFIG.model, dim=16, embedding_dim=16, branch_start=0.01, last_norm=False),
)
