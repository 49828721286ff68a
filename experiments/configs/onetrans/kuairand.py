"""OneTrans: one transformer over events and features at the FLOPs and on the data of kunlun/kuairand.

    python -m experiments.train onetrans/kuairand --data.root KuaiRand-Pure

Cost and score (LogLoss, AUC, NE): to be measured.
"""

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
        heads=2,
        ffn_multiple=3.0,
        first_queries=64,
        head_hidden=(64,),
        wide=True,
        dropout=0.2,
    ),
    optimizer=kuairand.CONFIG.optimizer,
    run=kuairand.CONFIG.run,
)
