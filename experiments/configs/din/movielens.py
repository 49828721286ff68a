"""DIN: target attention over each history, 1.4 MFLOPs an example, on the data of kunlun/movielens.

    python -m experiments.train din/movielens --data.root ml-1m

Cost: some ten minutes on a CPU core. Score: none yet; in order of time at 5e-4, one seed: valid LogLoss .3356, test
AUC .8789, NE .6368 (commit b989c71, `experiments/results/cpu/leaderboard_movielens.json`).
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
