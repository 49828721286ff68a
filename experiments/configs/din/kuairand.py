"""DIN: target attention over each history, 3.9 MFLOPs an example, on the data of kunlun/kuairand.

    python -m experiments.train din/kuairand --data.root KuaiRand-Pure

Cost: four minutes on a CPU core. Score, means of five seeds: valid LogLoss .5909, test AUC .7416, NE .8573, frozen
gAUC .6393 (commit c6af414, `experiments/results/cpu/leaderboard_kuairand.json`).
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
        embedding_scale=0.01,  # as in kunlun/kuairand
        unit_hidden=(40, 20),
        head_hidden=(512, 256),
        wide=True,
        dropout=0.2,
    ),
    optimizer=dataclasses.replace(kuairand.CONFIG.optimizer, learning_rate=5e-4),
    run=kuairand.CONFIG.run,
)
