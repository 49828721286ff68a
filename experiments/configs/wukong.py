"""Wukong: stacked factorization machines at the FLOPs and on the data of preset small."""

from experiments.configs import small
from kunlun_jax.config import TrainConfig
from kunlun_jax.models.wukong import WukongConfig

CONFIG = TrainConfig(
    data=small.CONFIG.data,
    loader=small.CONFIG.loader,
    model=WukongConfig(
        dim=48,
        layers=3,
        embedding_dim=32,
        fm_tokens=16,
        linear_tokens=16,
        fm_rank=16,
        fm_hidden=(160,),
        history_tokens=4,
        head_hidden=(64,),
    ),
    optimizer=small.CONFIG.optimizer,
    run=small.CONFIG.run,
)
