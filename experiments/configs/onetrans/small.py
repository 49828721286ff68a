"""OneTrans: one transformer over events and features at the FLOPs and on the data of kunlun/small.

    python -m experiments.train onetrans/small

Cost: five minutes on a CPU core that others use too. Score: test NE .833, one seed, where the least there can be is
.681 and Kunlun's is .810 (commit 8b23845, `experiments/results/cpu/systems.json`).
"""

from experiments.configs.kunlun import small
from kunlun_jax.models.onetrans import OneTransConfig
from kunlun_jax.training.config import TrainConfig

CONFIG = TrainConfig(
    data=small.CONFIG.data,
    loader=small.CONFIG.loader,
    model=OneTransConfig(
        dim=32,
        layers=3,
        embedding_dim=32,
        heads=2,
        ffn_multiple=4.0,
        first_queries=256,
        head_hidden=(64,),
    ),
    optimizer=small.CONFIG.optimizer,
    run=small.CONFIG.run,
)
