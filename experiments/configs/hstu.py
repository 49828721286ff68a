"""HSTU: one causal sequence with the candidate last at the FLOPs and on the data of preset small."""

from experiments.configs import small
from kunlun_jax.config import TrainConfig
from kunlun_jax.models.hstu import HSTUConfig

CONFIG = TrainConfig(
    data=small.CONFIG.data,
    loader=small.CONFIG.loader,
    model=HSTUConfig(
        dim=44,
        layers=2,
        embedding_dim=32,
        heads=2,
        sequence_scale=100.0,
        candidate_hidden=(128,),
        head_hidden=(64,),
    ),
    optimizer=small.CONFIG.optimizer,
    run=small.CONFIG.run,
)
