"""DCNv2: a low-rank cross network beside a deep one, 3.9 MFLOPs an example, on the data of kunlun/kuairand.

    python -m experiments.train dcnv2/kuairand --data.root KuaiRand-Pure

Cost: three minutes on a CPU core that others use too. Score, means of five seeds: valid LogLoss .5902, test AUC .7425,
NE .8560, frozen gAUC .6377 (commit 3d58d8b, `experiments/results/cpu/leaderboard_kuairand.json`).
"""

import dataclasses

from experiments.configs.kunlun import kuairand
from kunlun_jax.models.dcnv2 import DCNv2Config
from kunlun_jax.training.config import TrainConfig

CONFIG = TrainConfig(
    data=kuairand.CONFIG.data,
    loader=kuairand.CONFIG.loader,
    model=DCNv2Config(
        dim=32,
        embedding_dim=32,
        embedding_scale=0.01,  # as in kunlun/kuairand
        cross_layers=3,
        cross_rank=64,
        deep_hidden=(640, 320),
        wide=True,
        dropout=0.2,
    ),
    optimizer=dataclasses.replace(kuairand.CONFIG.optimizer, learning_rate=2e-3),
    run=kuairand.CONFIG.run,
)
