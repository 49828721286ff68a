"""Wukong: stacked factorization machines at the FLOPs and on the data of kunlun/kuairand.

    python -m experiments.train wukong/kuairand --data.root KuaiRand-Pure

Cost and score (LogLoss, AUC, NE): still to be measured.
"""

from experiments.configs.kunlun import kuairand
from kunlun_jax.models.wukong import WukongConfig
from kunlun_jax.training.config import TrainConfig

CONFIG = TrainConfig(
    data=kuairand.CONFIG.data,
    loader=kuairand.CONFIG.loader,
    model=WukongConfig(
        dim=48,
        layers=3,
        embedding_dim=32,
        fm_tokens=16,
        linear_tokens=16,
        fm_rank=16,
        fm_hidden=(192,),
        # As in kunlun/kuairand: at unit length an id that was never trained would weigh as much as any other.
        unit_products=False,
        history_tokens=4,
        head_hidden=(64,),
        wide=True,
        dropout=0.2,
    ),
    optimizer=kuairand.CONFIG.optimizer,
    run=kuairand.CONFIG.run,
)
