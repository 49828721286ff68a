"""OneTrans: one transformer over events and features, 1.4 MFLOPs an example, on the data of kunlun/movielens.

    python -m experiments.train onetrans/movielens --data.root ml-1m

Cost: ten minutes on a CPU core. Score with ``--model.branch-start 1 --model.last-norm``, means of five seeds: valid
LogLoss .3289, test AUC .8833, NE .6239 (commit a884a6a, `experiments/results/cpu/leaderboard_movielens.json`).
"""

import dataclasses

from experiments.configs.kunlun import movielens
from experiments.configs.onetrans import kuairand

CONFIG = dataclasses.replace(
    movielens.CONFIG,
    # Blocks start small and no norm follows them: otherwise the head reads little of the ids (LOG.md).
    model=dataclasses.replace(kuairand.CONFIG.model, dim=16, embedding_dim=16, branch_start=0.01, last_norm=False),
)
