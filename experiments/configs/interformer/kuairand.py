"""InterFormer: two-way summaries and attention, 3.9 MFLOPs an example, on the data of kunlun/kuairand.

    python -m experiments.train interformer/kuairand --data.root KuaiRand-Pure

Cost: 22 minutes on a slow CPU core that others use too. Score, one seed: valid LogLoss .5922, test AUC .7408, NE .8580,
frozen gAUC .6364 (commit 7841a85, `experiments/results/cpu/leaderboard_kuairand.json`).
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
