"""HSTU: one causal sequence with the candidate last, 4.2 MFLOPs an example, on the data of kunlun/kuairand.

    python -m experiments.train hstu/kuairand --data.root KuaiRand-Pure

Cost: seven minutes on a CPU core. Score, means of five seeds: valid LogLoss .5920, test AUC .7409, NE .8579, frozen
gAUC .6370 (commit 5286dd0, `experiments/results/cpu/leaderboard_kuairand.json`).
"""

import dataclasses

from experiments.configs.kunlun import kuairand
from kunlun_jax.models.hstu import HSTUConfig
from kunlun_jax.training.config import TrainConfig

CONFIG = TrainConfig(
    data=kuairand.CONFIG.data,
    loader=kuairand.CONFIG.loader,
    model=HSTUConfig(
        dim=64,
        layers=4,
        embedding_dim=32,
        embedding_scale=0.01,  # as in kunlun/kuairand
        heads=2,
        sequence_scale=100.0,
        candidate_hidden=(256,),
        # Blocks start small and the head reads the features; else, presumably, it knows little of short ids (LOG.md).
        branch_start=0.01,
        head_context=True,
        head_hidden=(64,),
        wide=True,
        dropout=0.2,
    ),
    optimizer=dataclasses.replace(kuairand.CONFIG.optimizer, learning_rate=1e-3),
    run=kuairand.CONFIG.run,
)
