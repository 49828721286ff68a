"""DLRM: dot products of embeddings and means, 1.4 MFLOPs an example, on the data of kunlun/movielens.

    python -m experiments.train dlrm/movielens --data.root ml-1m

Cost: some ten minutes on a CPU core, as an estimate. Score: none; it was never trained, so its NE is not known.
"""

import dataclasses

from experiments.configs.dlrm import kuairand
from experiments.configs.kunlun import movielens

CONFIG = dataclasses.replace(
    movielens.CONFIG,
    model=dataclasses.replace(kuairand.CONFIG.model, dim=32, embedding_dim=16, head_hidden=(512, 256)),
)
