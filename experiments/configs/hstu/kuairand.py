"""HSTU: one causal sequence with the candidate last at the FLOPs and on the data of kunlun/kuairand.

    python -m experiments.train hstu/kuairand --data.root KuaiRand-Pure

Cost and score (LogLoss, AUC, NE): to be measured.
"""

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
        heads=2,
        sequence_scale=100.0,
        candidate_hidden=(256,),
        head_hidden=(64,),
        wide=True,
        dropout=0.2,
    ),
    optimizer=kuairand.CONFIG.optimizer,
    run=kuairand.CONFIG.run,
)
