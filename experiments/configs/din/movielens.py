"""DIN: target attention over each history, the model of din/kuairand on the data of kunlun/movielens.

    python -m experiments.train din/movielens --data.root ml-1m

Never trained; a run is estimated at half an hour on a CPU core.
"""

import dataclasses

from experiments.configs.din import kuairand
from experiments.configs.kunlun import movielens

CONFIG = dataclasses.replace(movielens.CONFIG, model=kuairand.CONFIG.model)
