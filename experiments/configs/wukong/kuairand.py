"""Wukong: stacked factorization machines, 3.9 MFLOPs an example, on the data of kunlun/kuairand.

    python -m experiments.train wukong/kuairand --data.root KuaiRand-Pure

Cost: six minutes on a CPU core that others use too. Score, one seed: valid LogLoss .5933, test AUC .7393, NE .8595,
frozen gAUC .6394 (commit e23b0ee, `experiments/results/cpu/leaderboard_kuairand.json`); the same seed on two cores had
.5916, .7418, .8570 and .6396 (commit fc2e8d6).
"""

import dataclasses

from experiments.configs.kunlun import kuairand
from kunlun_jax.models.wukong import WukongConfig
from kunlun_jax.training.config import TrainConfig

CONFIG = TrainConfig(
    data=kuairand.CONFIG.data,
    loader=kuairand.CONFIG.loader,
    model=WukongConfig(
        dim=48,
        layers=3,
        embedding_dim=32,
        fm_tokens=16,
        linear_tokens=16,
        fm_rank=16,
        fm_hidden=(192,),
        # As in kunlun/kuairand: at unit length an id that was never trained would weigh as much as any other.
        unit_products=False,
        history_tokens=4,
        head_hidden=(64,),
        wide=True,
        dropout=0.2,
    ),
    optimizer=dataclasses.replace(kuairand.CONFIG.optimizer, learning_rate=2e-3),
    run=kuairand.CONFIG.run,
)
