"""Pooled product: gated sums of a history times the candidate at half the FLOPs and on the data of kunlun/small.

    python -m experiments.train pooled_product/small

Cost: one minute on two CPU cores. Score: test NE .816, one seed, where the least there can be is .681
(commit bd154d7, `experiments/results/cpu/learns.json`).
"""

from experiments.configs.kunlun import small
from kunlun_jax.models.pooled_product import PooledProductConfig
from kunlun_jax.training.config import TrainConfig

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
