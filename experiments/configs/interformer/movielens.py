"""InterFormer: two-way summaries and attention, the model of interformer/kuairand on the data of kunlun/movielens.

    python -m experiments.train interformer/movielens --data.root ml-1m

Cost: half an hour on a CPU core, as an estimate. Score: none; it was never trained, so its NE is not known.
"""

import dataclasses

from experiments.configs.interformer import kuairand
from experiments.configs.kunlun import movielens

CONFIG = dataclasses.replace(movielens.CONFIG, model=kuairand.CONFIG.model)
