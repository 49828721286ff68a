"""KuaiVideo: DIN with the sizes of the BARS board's DIN, on the data of kunlun/kuaivideo_x1.

    python -m experiments.train din/kuaivideo_x1 --data.root kuaivideo

Cost and score: not known, neither NE nor the board's metrics, for the data is not here and nobody has run it. The
board's DIN has gAUC .6696, AUC .7495, LogLoss .4321, the best of its passes on the test rows after nine (reczoo/BARS at
5b5e61f, ranking/ctr/DIN/DIN_kuaivideo_x1). It also reads vectors of thumbnails. Widths, dropout, batch and rate are its
own, the start of embeddings is FuxiCTR's default, which it runs on; ours has SiLU for its activations, row-wise Adagrad
for the tables and no penalty on them.
"""

from experiments.configs.kunlun import kuaivideo_x1
from kunlun_jax.models.din import DINConfig
from kunlun_jax.training.config import TrainConfig

CONFIG = TrainConfig(
    data=kuaivideo_x1.CONFIG.data,
    loader=kuaivideo_x1.CONFIG.loader,
    model=DINConfig(
        dim=64,
        embedding_dim=64,
        embedding_scale=1e-4,
        unit_hidden=(512, 256),
        head_hidden=(1024, 512, 256),
        dropout=0.1,
    ),
    optimizer=kuaivideo_x1.CONFIG.optimizer,
    run=kuaivideo_x1.CONFIG.run,
)
