"""DCNv2: a low-rank cross network beside a deep one, the model of dcnv2/kuairand on the data of kunlun/movielens.

    python -m experiments.train dcnv2/movielens --data.root ml-1m

Cost: half an hour on a CPU core, as an estimate. Score: none; it was never trained, so its NE is not known.
"""

import dataclasses

from experiments.configs.dcnv2 import kuairand
from experiments.configs.kunlun import movielens

CONFIG = dataclasses.replace(movielens.CONFIG, model=kuairand.CONFIG.model)
