"""HSTU: one causal sequence with the candidate last, 1.3 MFLOPs an example, on the data of kunlun/movielens.

    python -m experiments.train hstu/movielens --data.root ml-1m

Cost: some ten minutes on a CPU core, as an estimate. Score: none; it was never trained, so its NE is not known.
"""

import dataclasses

from experiments.configs.hstu import kuairand
from experiments.configs.kunlun import movielens

CONFIG = dataclasses.replace(
    movielens.CONFIG,
    model=dataclasses.replace(kuairand.CONFIG.model, dim=16, layers=2, embedding_dim=16, candidate_hidden=(128,)),
)
