"""DLRM: dot products of embeddings and means at the FLOPs and on the data of preset small."""

from experiments.configs import small
from kunlun_jax.config import TrainConfig
from kunlun_jax.models.dlrm import DLRMConfig

CONFIG = TrainConfig(
    data=small.CONFIG.data,
    loader=small.CONFIG.loader,
    model=DLRMConfig(
        dim=64,
        embedding_dim=32,
        bottom_hidden=(256,),
        head_hidden=(1280, 768),
    ),
    optimizer=small.CONFIG.optimizer,
    run=small.CONFIG.run,
)
