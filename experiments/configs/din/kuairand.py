"""DIN: target attention over each history at the FLOPs and on the data of kunlun/kuairand.

    python -m experiments.train din/kuairand --data.root KuaiRand-Pure

Cost and score (LogLoss, AUC, NE): still to be measured.
"""

from experiments.configs.kunlun import kuairand
from kunlun_jax.models.din import DINConfig
from kunlun_jax.training.config import TrainConfig

CONFIG = TrainConfig(
    data=kuairand.CONFIG.data,
    loader=kuairand.CONFIG.loader,
    model=DINConfig(
        dim=48,
        embedding_dim=32,
        unit_hidden=(40, 20),
        head_hidden=(512, 256),
        wide=True,
        dropout=0.2,
    ),
    optimizer=kuairand.CONFIG.optimizer,
    run=kuairand.CONFIG.run,
)
