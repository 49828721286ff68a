"""InterFormer: two-way summaries and attention, 1.6 MFLOPs an example, on the data of kunlun/movielens.

    python -m experiments.train interformer/movielens --data.root ml-1m

Cost: eight minutes on a CPU core. Score, means of five seeds: valid LogLoss .3176, test AUC .8920, NE .6035 (commit
c1ee887, `experiments/results/cpu/leaderboard_movielens.json`).
"""

import dataclasses

from experiments.configs.interformer import kuairand
from experiments.configs.kunlun import movielens

CONFIG = dataclasses.replace(
    movielens.CONFIG,
    # The norm costs .0042 on valid, presumably since behind it rare ids are as loud as any (LOG.md).
    model=dataclasses.replace(
        kuairand.CONFIG.model, dim=16, embedding_dim=16, cross_rank=8, interaction_hidden=(32,), attention_norm=False
    ),
    optimizer=dataclasses.replace(movielens.CONFIG.optimizer, learning_rate=4e-3),
)
