"""DCNv2: a full-rank cross network beside a deep one at the FLOPs and on the data of kunlun/small.

    python -m experiments.train dcnv2/small

Cost: two minutes on a CPU core that others use too. Score: test NE .853, one seed, where the least there can be is
.681 and Kunlun's is .810 (commit 8b23845, `experiments/results/cpu/systems.json`).
"""

from experiments.configs.kunlun import small
from kunlun_jax.models.dcnv2 import DCNv2Config
from kunlun_jax.training.config import TrainConfig

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
