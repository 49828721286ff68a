"""DLRM: dot products of embeddings and means, the model of dlrm/kuairand on the data of kunlun/movielens.

    python -m experiments.train dlrm/movielens --data.root ml-1m

Cost: half an hour on a CPU core, as an estimate. Score: none; it was never trained, so its NE is not known.
"""

import dataclasses

from experiments.configs.dlrm import kuairand
from experiments.configs.kunlun import movielens

CONFIG = dataclasses.replace(movielens.CONFIG, model=kuairand.CONFIG.model)
