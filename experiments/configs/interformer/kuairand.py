"""InterFormer: two-way summaries and attention, 3.9 MFLOPs an example, on the data of kunlun/kuairand.

    python -m experiments.train interformer/kuairand --data.root KuaiRand-Pure

Cost: seven minutes on a CPU core. Score, means of five seeds: valid LogLoss .5909, test AUC .7415, NE .8571, frozen
gAUC .6368 (commit c6af414, `experiments/results/cpu/leaderboard_kuairand.json`).
"""

import dataclasses

from experiments.configs.kunlun import kuairand
from kunlun_jax.models.interformer import InterFormerConfig
from kunlun_jax.training.config import TrainConfig

CONFIG = TrainConfig(
    data=kuairand.CONFIG.data,
    loader=kuairand.CONFIG.loader,
    model=InterFormerConfig(
        dim=32,
        layers=1,
        embedding_dim=32,
        embedding_scale=0.01,  # as in kunlun/kuairand
        heads=2,
        cross_rank=32,
        interaction_hidden=(112,),
        # As in kunlun/kuairand: at unit length an id that was never trained would weigh as much as any other.
        unit_products=False,
        head_hidden=(64,),
        wide=True,
        dropout=0.2,
    ),
    optimizer=dataclasses.replace(kuairand.CONFIG.optimizer, learning_rate=2e-3),
    run=kuairand.CONFIG.run,
)
