"""DLRM: dot products of embeddings and means, 3.9 MFLOPs an example, on the data of kunlun/kuairand.

    python -m experiments.train dlrm/kuairand --data.root KuaiRand-Pure

Cost: five minutes on a CPU core that others use too. Score, one seed: valid LogLoss .5906, test AUC .7424, NE .8558,
frozen gAUC .6396 (commit 8b23845, `experiments/results/cpu/systems_kuairand.json`).
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
        bottom_hidden=(256,),
        head_hidden=(768, 512),
        wide=True,
        dropout=0.2,
    ),
    optimizer=dataclasses.replace(kuairand.CONFIG.optimizer, learning_rate=2e-3),
    run=kuairand.CONFIG.run,
)
