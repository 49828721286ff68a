"""HSTU: one causal sequence with the candidate last, the model of hstu/kuairand on the data of kunlun/movielens.

    python -m experiments.train hstu/movielens --data.root ml-1m

Cost: half an hour on a CPU core, as an estimate. Score: none; it was never trained, so its NE is not known.
"""

import dataclasses

from experiments.configs.hstu import kuairand
from experiments.configs.kunlun import movielens

CONFIG = dataclasses.replace(movielens.CONFIG, model=kuairand.CONFIG.model)
