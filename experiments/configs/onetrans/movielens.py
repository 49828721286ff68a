"""OneTrans: one transformer over events and features, 1.4 MFLOPs an example, on the data of kunlun/movielens.

    python -m experiments.train onetrans/movielens --data.root ml-1m

Cost: some ten minutes on a CPU core, as an estimate. Score: none; it was never trained, so its NE is not known.
"""

import dataclasses

from experiments.configs.kunlun import movielens
from experiments.configs.onetrans import kuairand

CONFIG = dataclasses.replace(
    movielens.CONFIG,
    model=dataclasses.replace(kuairand.CONFIG.model, dim=16, embedding_dim=16),
)
