"""Pooled product: gated sums times the candidate, 1.3 MFLOPs an example, on the data of kunlun/movielens.

    python -m experiments.train pooled_product/movielens --data.root ml-1m

Cost: some ten minutes on a CPU core, as an estimate. Score: none; it was never trained, so its NE is not known.
"""

import dataclasses

from experiments.configs.kunlun import movielens
from experiments.configs.pooled_product import kuairand

CONFIG = dataclasses.replace(
    movielens.CONFIG,
    model=dataclasses.replace(kuairand.CONFIG.model, dim=32, embedding_dim=16, head_hidden=(192, 96)),
)
