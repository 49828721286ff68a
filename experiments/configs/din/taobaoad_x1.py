"""TaobaoAd: DIN with the sizes of the BARS board's DIN, on the data of kunlun/taobaoad_x1.

    python -m experiments.train din/taobaoad_x1 --data.root taobaoad

Cost and score: not known, neither NE nor the board's metrics, for the data is not here and nobody has run it. The
board's DIN has gAUC .5765, AUC .6524, LogLoss .1924, the best of its passes on the test rows after three (reczoo/BARS
at 5b5e61f, ranking/ctr/DIN/DIN_taobaoad_x1). Widths, dropout, batch and rate are its own, the start of embeddings is
FuxiCTR's default, which it runs on; ours has SiLU for its activations, row-wise Adagrad for the tables and no penalty
on them.
"""

from experiments.configs.kunlun import taobaoad_x1
from kunlun_jax.models.din import DINConfig
from kunlun_jax.training.config import TrainConfig

CONFIG = TrainConfig(
    data=taobaoad_x1.CONFIG.data,
    loader=taobaoad_x1.CONFIG.loader,
    model=DINConfig(
        dim=32,
        embedding_dim=32,
        embedding_scale=1e-4,
        unit_hidden=(512, 256),
        head_hidden=(512, 256, 128),
        dropout=0.1,
    ),
    optimizer=taobaoad_x1.CONFIG.optimizer,
    run=taobaoad_x1.CONFIG.run,
)
