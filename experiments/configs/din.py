"""DIN: target attention over each history at the FLOPs and on the data of preset small.

    python -m experiments.train din

What it scores beside Kunlun: `python -m experiments.learns`.
"""

from experiments.configs import small
from kunlun_jax.config import TrainConfig
from kunlun_jax.models.din import DINConfig

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
