"""DLRM: dot products of embeddings and means, 3.9 MFLOPs an example, on the data of kunlun/kuairand.

    python -m experiments.train dlrm/kuairand --data.root KuaiRand-Pure

Cost: four minutes on a CPU core that others use too. Score, means of five seeds: valid LogLoss .5902, test AUC .7427,
NE .8557, frozen gAUC .6382 (commit 3d58d8b, `experiments/results/cpu/leaderboard_kuairand.json`).
"""

import dataclasses

from experiments.configs.kunlun import kuairand
from kunlun_jax.models.dlrm import DLRMConfig
from kunlun_jax.training.config import TrainConfig

CONFIG = TrainConfig(
    data=kuairand.CONFIG.data,
    loader=kuairand.CONFIG.loader,
    model=DLRMConfig(
        dim=64,
        embedding_dim=32,
        embedding_scale=0.01,  # as in kunlun/kuairand
        bottom_hidden=(256,),
        head_hidden=(768, 512),
        wide=True,
        dropout=0.2,
    ),
    optimizer=dataclasses.replace(kuairand.CONFIG.optimizer, learning_rate=1e-3),
    run=kuairand.CONFIG.run,
)
