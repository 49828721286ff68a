"""Pooled_product: gated sums of a history times the candidate, on the data of preset small.

    python -m experiments.train pooled_product

At half the FLOPs of small. What it scores beside Kunlun: `python -m experiments.learns`.
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
