"""DIN: target attention over each history at the FLOPs and on the data of preset small.

    python -m experiments.train din

Two to three minutes on two CPU cores. Test NE .902 with 37,500 training rows (mean of two seeds, floor .681;
`experiments.learns`); with 150,000, as here, about .855 (one seed, of a slightly wider unit).
"""

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
