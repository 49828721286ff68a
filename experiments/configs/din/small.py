"""DIN: target attention over each history at the FLOPs and on the data of kunlun/small.

    python -m experiments.train din/small

Cost: two minutes on two CPU cores. Score: test NE .833, one seed, where the least there can be is .681
(commit bd154d7, `experiments/results/cpu/learns.json`).
"""

from experiments.configs.kunlun import small
from kunlun_jax.models.din import DINConfig
from kunlun_jax.training.config import TrainConfig

CONFIG = TrainConfig(
    data=small.CONFIG.data,
    loader=small.CONFIG.loader,
    model=DINConfig(
        dim=48,
        embedding_dim=32,
        unit_hidden=(40, 20),
        head_hidden=(512, 256),
    ),
    optimizer=small.CONFIG.optimizer,
    run=small.CONFIG.run,
)
