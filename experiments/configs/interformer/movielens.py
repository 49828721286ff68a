"""InterFormer: two-way summaries and attention, 1.6 MFLOPs an example, on the data of kunlun/movielens.

    python -m experiments.train interformer/movielens --data.root ml-1m

Cost: some ten minutes on a CPU core, as an estimate. Score: none; it was never trained, so its NE is not known.
"""

import dataclasses

from experiments.configs.interformer import kuairand
from experiments.configs.kunlun import movielens

CONFIG = dataclasses.replace(
    movielens.CONFIG,
    model=dataclasses.replace(kuairand.CONFIG.model, dim=16, embedding_dim=16, cross_rank=8, interaction_hidden=(32,)),
)
