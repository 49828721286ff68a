"""DIN: target attention over each history, 3.9 MFLOPs an example, on the data of kunlun/kuairand.

    python -m experiments.train din/kuairand --data.root KuaiRand-Pure

Cost: five minutes on two busy CPU cores. Score, one seed: valid LogLoss .5919, test AUC .7406, NE .8583,
frozen gAUC .6395 (commit fc2e8d6).
"""

import dataclasses

from experiments.configs.kunlun import kuairand
from kunlun_jax.models.din import DINConfig
from kunlun_jax.training.config import TrainConfig

CONFIG = TrainConfig(
    data=kuairand.CONFIG.data,
    loader=kuairand.CONFIG.loader,
    model=DINConfig(
        dim=48,
        embedding_dim=32,
        unit_hidden=(40, 20),
        head_hidden=(512, 256),
        wide=True,
        dropout=0.2,
    ),
    optimizer=dataclasses.replace(kuairand.CONFIG.optimizer, learning_rate=2e-3),
    run=kuairand.CONFIG.run,
)
