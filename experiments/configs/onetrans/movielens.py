"""OneTrans: one transformer over events and features, the model of onetrans/kuairand on the data of kunlun/movielens.

    python -m experiments.train onetrans/movielens --data.root ml-1m

Cost: half an hour on a CPU core, as an estimate. Score: none; it was never trained, so its NE is not known.
"""

import dataclasses

from experiments.configs.kunlun import movielens
from experiments.configs.onetrans import kuairand

CONFIG = dataclasses.replace(movielens.CONFIG, model=kuairand.CONFIG.model)
