"""Wukong: stacked factorization machines, 1.3 MFLOPs an example, on the data of kunlun/movielens.

    python -m experiments.train wukong/movielens --data.root ml-1m

Cost: some ten minutes on a CPU core, as an estimate. Score: none; it was never trained, so its NE is not known.
"""

import dataclasses

from experiments.configs.kunlun import movielens
from experiments.configs.wukong import kuairand

CONFIG = dataclasses.replace(
    movielens.CONFIG,
    model=dataclasses.replace(kuairand.CONFIG.model, dim=16, embedding_dim=16, fm_rank=8, fm_hidden=(128,)),
)
