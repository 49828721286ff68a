"""InterFormer: two-way summaries and attention, the model of interformer/kuairand on the data of kunlun/movielens.

    python -m experiments.train interformer/movielens --data.root ml-1m

Never trained; a run is estimated at half an hour on a CPU core.
"""

import dataclasses

from experiments.configs.interformer import kuairand
from experiments.configs.kunlun import movielens

CONFIG = dataclasses.replace(movielens.CONFIG, model=kuairand.CONFIG.model)
