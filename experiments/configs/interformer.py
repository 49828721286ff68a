"""InterFormer: two-way summaries and attention at the FLOPs and on the data of preset small."""

from experiments.configs import small
from kunlun_jax.config import TrainConfig
from kunlun_jax.models.interformer import InterFormerConfig

CONFIG = TrainConfig(
    data=small.CONFIG.data,
    loader=small.CONFIG.loader,
    model=InterFormerConfig(
        dim=24,
        layers=2,
        embedding_dim=32,
        heads=2,
        cross_rank=32,
        interaction_hidden=(128,),
        head_hidden=(64,),
    ),
    optimizer=small.CONFIG.optimizer,
    run=small.CONFIG.run,
)
