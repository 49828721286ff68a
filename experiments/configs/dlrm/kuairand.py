"""DLRM: dot products of embeddings and means, 3.9 MFLOPs an example, on the data of kunlun/kuairand.

    python -m experiments.train dlrm/kuairand --data.root KuaiRand-Pure

Cost: four minutes on a CPU core that others use too. Score with ``--model.embedding-scale 0.1``, means of five seeds:
valid LogLoss .5901, test AUC .7422, NE .8561, frozen gAUC .6367 (commit ce78d36,
`experiments/results/cpu/leaderboard_kuairand.json`).
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
