"""DLRM: dot products of embeddings and means, 1.4 MFLOPs an example, on the data of kunlun/movielens.

    python -m experiments.train dlrm/movielens --data.root ml-1m

Cost: four minutes on a CPU core. Score, one seed: valid LogLoss .3315, test AUC .8814, NE .6308 (commit 48e5830). With
`--optimizer.learning-rate 1e-3` they are .3277, .8851 and .6225; the leaderboard's search is to come.
"""

import dataclasses

from experiments.configs.dlrm import kuairand
from experiments.configs.kunlun import movielens

CONFIG = dataclasses.replace(
    movielens.CONFIG,
    model=dataclasses.replace(kuairand.CONFIG.model, dim=32, embedding_dim=16, head_hidden=(512, 256)),
)
