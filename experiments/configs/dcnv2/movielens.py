"""DCNv2: a low-rank cross network beside a deep one, 1.2 MFLOPs an example, on the data of kunlun/movielens.

    python -m experiments.train dcnv2/movielens --data.root ml-1m

Cost: some ten minutes on a CPU core, as an estimate. Score: none; it was never trained, so its NE is not known.
"""

import dataclasses

from experiments.configs.dcnv2 import kuairand
from experiments.configs.kunlun import movielens

CONFIG = dataclasses.replace(
    movielens.CONFIG,
    model=dataclasses.replace(kuairand.CONFIG.model, dim=24, embedding_dim=24, cross_rank=32, deep_hidden=(448, 224)),
)
