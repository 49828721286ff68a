"""Pooled_product: gated sums of a history times the candidate, on the data of preset small.

    python -m experiments.train pooled_product

About a minute on two idle CPU cores, at half the FLOPs of small. Test NE .859 with 37,500 training rows and .832 with
150,000, as here (means of two seeds, floor .681; `experiments.learns`).
"""

from experiments.configs import small
from kunlun_jax.config import TrainConfig
from kunlun_jax.models.pooled_product import PooledProductConfig

CONFIG = TrainConfig(
    data=small.CONFIG.data,
    loader=small.CONFIG.loader,
    model=PooledProductConfig(
        dim=32,
        embedding_dim=16,
        # A match starts as the square of it, which .05 would leave unseen for long.
        embedding_scale=0.25,
        head_hidden=(512, 256),
    ),
    optimizer=small.CONFIG.optimizer,
    run=small.CONFIG.run,
)
