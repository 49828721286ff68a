"""OneTrans: one transformer over events and features, 3.9 MFLOPs an example, on the data of kunlun/kuairand.

    python -m experiments.train onetrans/kuairand --data.root KuaiRand-Pure

Cost: six minutes on a CPU core. Score, means of five seeds: valid LogLoss .5916, test AUC .7417, NE .8572, frozen gAUC
.6390 (commit 501ae2e, `experiments/results/cpu/leaderboard_kuairand.json`).
"""

import dataclasses

from experiments.configs.kunlun import kuairand
from kunlun_jax.models.onetrans import OneTransConfig
from kunlun_jax.training.config import TrainConfig

CONFIG = TrainConfig(
    data=kuairand.CONFIG.data,
    loader=kuairand.CONFIG.loader,
    model=OneTransConfig(
        dim=32,
        layers=3,
        embedding_dim=32,
        embedding_scale=0.01,  # as in kunlun/kuairand
        heads=2,
        ffn_multiple=3.0,
        first_queries=64,
        # Blocks start small and no norm follows them; else, presumably, the head reads little of short ids (LOG.md).
        branch_start=0.01,
        last_norm=False,
        head_hidden=(64,),
        wide=True,
        dropout=0.2,
    ),
    optimizer=dataclasses.replace(kuairand.CONFIG.optimizer, learning_rate=1e-3),
    run=kuairand.CONFIG.run,
)
