"""DLRM: dot products of embeddings and means at the FLOPs and on the data of kunlun/small.

    python -m experiments.train dlrm/small

Cost: two minutes on a CPU core that others use too. Score: test NE .817, one seed, where the least there can be is
.681 and Kunlun's is .810 (commit 8b23845, `experiments/results/cpu/systems.json`).
"""

from experiments.configs.kunlun import small
from kunlun_jax.models.dlrm import DLRMConfig
from kunlun_jax.training.config import TrainConfig

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
