"""DIN: target attention over each history at the FLOPs and on the data of preset small."""

from experiments.configs import small
from kunlun_jax.config import TrainConfig
from kunlun_jax.models.din import DINConfig

CONFIG = TrainConfig(
    data=small.CONFIG.data,
    loader=small.CONFIG.loader,
    model=DINConfig(
        dim=48,
        embedding_dim=16,
        unit_hidden=(56, 28),
        head_hidden=(512, 256),
    ),
    optimizer=small.CONFIG.optimizer,
    run=small.CONFIG.run,
)
