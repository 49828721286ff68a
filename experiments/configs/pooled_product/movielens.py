"""Pooled product: gated sums times the candidate, the model of pooled_product/kuairand on the data of kunlun/movielens.

    python -m experiments.train pooled_product/movielens --data.root ml-1m

Cost: half an hour on a CPU core, as an estimate. Score: none; it was never trained, so its NE is not known.
"""

import dataclasses

from experiments.configs.kunlun import movielens
from experiments.configs.pooled_product import kuairand

CONFIG = dataclasses.replace(movielens.CONFIG, model=kuairand.CONFIG.model)
