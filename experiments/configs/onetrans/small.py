"""OneTrans: one transformer over events and features at the FLOPs and on the data of kunlun/small.

    python -m experiments.train onetrans/small

Cost: eight minutes on two CPU cores that others use too, by the rate of a run on a quarter of the rows. Score of that:
test NE .887, mean of two seeds, where the least there can be is .681, DIN's is .904 and HSTU's .906 (LOG.md). All rows
are still to be measured.
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
