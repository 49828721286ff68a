"""OneTrans: one transformer over events and features, the model of onetrans/kuairand on the data of kunlun/movielens.

    python -m experiments.train onetrans/movielens --data.root ml-1m

Never trained; a run is estimated at half an hour on a CPU core.
"""

import dataclasses

from experiments.configs.kunlun import movielens
from experiments.configs.onetrans import kuairand

CONFIG = dataclasses.replace(movielens.CONFIG, model=kuairand.CONFIG.model)
