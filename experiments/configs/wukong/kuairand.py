"""Wukong: stacked factorization machines, 3.9 MFLOPs an example, on the data of kunlun/kuairand.

    python -m experiments.train wukong/kuairand --data.root KuaiRand-Pure

Cost: four minutes on a CPU core. Score, means of five seeds: valid LogLoss .5917, test AUC .7425, NE .8566, frozen
gAUC .6359 (commit c6af414, `experiments/results/cpu/leaderboard_kuairand.json`).
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
        # As in kunlun/kuairand: short embeddings, and no norm makes those of rare ids long.
        embedding_scale=0.01,
        token_norm=False,
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
    optimizer=dataclasses.replace(kuairand.CONFIG.optimizer, learning_rate=5e-4),
    run=kuairand.CONFIG.run,
)
