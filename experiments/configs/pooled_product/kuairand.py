"""Pooled product: gated sums of a history times the candidate, 3.9 MFLOPs an example, on the data of kunlun/kuairand.

    python -m experiments.train pooled_product/kuairand --data.root KuaiRand-Pure

Cost: three minutes on a CPU core. Score, means of five seeds: valid LogLoss .5906, test AUC .7424, NE .8565, frozen
gAUC .6381 (commit 3d58d8b, `experiments/results/cpu/leaderboard_kuairand.json`).
"""

import dataclasses

from experiments.configs.kunlun import kuairand
from kunlun_jax.models.pooled_product import PooledProductConfig
from kunlun_jax.training.config import TrainConfig

CONFIG = TrainConfig(
    data=kuairand.CONFIG.data,
    loader=kuairand.CONFIG.loader,
    model=PooledProductConfig(
        dim=32,
        embedding_dim=32,
        embedding_scale=0.01,  # as in kunlun/kuairand; in the synthetic world, where no id is rare, .25
        head_hidden=(512, 256),
        wide=True,
        dropout=0.2,
    ),
    optimizer=dataclasses.replace(kuairand.CONFIG.optimizer, learning_rate=5e-4),
    run=kuairand.CONFIG.run,
)
