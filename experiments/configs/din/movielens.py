"""DIN: target attention over each history, 1.4 MFLOPs an example, on the data of kunlun/movielens.

    python -m experiments.train din/movielens --data.root ml-1m

Cost: four minutes on a CPU core. Score, means of five seeds: valid LogLoss .3239, test AUC .8870, NE .6155 (commit
c6af414, `experiments/results/cpu/leaderboard_movielens.json`).
"""

import dataclasses

from experiments.configs.din import kuairand
from experiments.configs.kunlun import movielens

CONFIG = dataclasses.replace(
    movielens.CONFIG,
    model=dataclasses.replace(
        kuairand.CONFIG.model, dim=16, embedding_dim=16, unit_hidden=(20, 10), head_hidden=(256, 128)
    ),
)
