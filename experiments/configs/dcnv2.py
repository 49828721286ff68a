"""DCNv2: a full-rank cross network beside a deep one at the FLOPs and on the data of preset small."""

from experiments.configs import small
from kunlun_jax.config import TrainConfig
from kunlun_jax.models.dcnv2 import DCNv2Config

CONFIG = TrainConfig(
    data=small.CONFIG.data,
    loader=small.CONFIG.loader,
    model=DCNv2Config(
        dim=32,
        embedding_dim=32,
        cross_layers=4,
        deep_hidden=(1024, 512),
    ),
    optimizer=small.CONFIG.optimizer,
    run=small.CONFIG.run,
)
