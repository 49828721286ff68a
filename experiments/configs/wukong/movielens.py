"""Wukong: stacked factorization machines, the model of wukong/kuairand on the data of kunlun/movielens.

    python -m experiments.train wukong/movielens --data.root ml-1m

Cost: half an hour on a CPU core, as an estimate. Score: none; it was never trained, so its NE is not known.
"""

import dataclasses

from experiments.configs.kunlun import movielens
from experiments.configs.wukong import kuairand

CONFIG = dataclasses.replace(movielens.CONFIG, model=kuairand.CONFIG.model)
