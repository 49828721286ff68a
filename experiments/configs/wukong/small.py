"""Wukong: stacked factorization machines at the FLOPs and on the data of kunlun/small.

    python -m experiments.train wukong/small

Cost: four minutes on a CPU core that others use too. Score: test NE .828, one seed, where the least there can be is
.681 and Kunlun's is .810 (commit 8b23845, `experiments/results/cpu/systems.json`).
"""

from experiments.configs.kunlun import small
from kunlun_jax.models.wukong import WukongConfig
from kunlun_jax.training.config import TrainConfig

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
