"""HSTU: one causal sequence with the candidate last, the model of hstu/kuairand on the data of kunlun/movielens.

    python -m experiments.train hstu/movielens --data.root ml-1m

Never trained; a run is estimated at half an hour on a CPU core.
"""

import dataclasses

from experiments.configs.hstu import kuairand
from experiments.configs.kunlun import movielens

CONFIG = dataclasses.replace(movielens.CONFIG, model=kuairand.CONFIG.model)
