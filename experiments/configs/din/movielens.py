"""DIN: target attention over each history, 1.4 MFLOPs an example, on the data of kunlun/movielens.

    python -m experiments.train din/movielens --data.root ml-1m

Cost: four minutes on a CPU core. Score with ``--model.embedding-scale 0.1``, means of five seeds: valid LogLoss .3254,
test AUC .8860, NE .6181 (commit 0d628ed, `experiments/results/cpu/leaderboard_movielens.json`).
"""

import dataclasses

from experiments.configs.din import kuairand
from experiments.configs.kunlun import movielens

CONFIG = dataclasses.replace(
    movielens.CONFIG,
    model=dataclasses.replace(
        kuairand.CONFIG.model, dim=16, embedding_dim=16, unit_hidden=(20, 10), head_hidden=(256, 128)
    ),
    optimizer=dataclasses.replace(movielens.CONFIG.optimizer, learning_rate=4e-3),
)
