"""TaobaoAd: trains on the BARS board's set, clicks on advertisements, by what users did in the shop before.

    python -m kunlun_jax.data.import_bars TaobaoAd_x1 FOLDER taobaoad
    python -m experiments.train kunlun/taobaoad_x1 --data.root taobaoad

Cost and score: not known, neither NE nor the board's metrics, for the data is not here and nobody has run it. As
kunlun/amazonelectronics_x1, with the width of tables, the batch and the longest history of this board.
"""

import dataclasses

from experiments.configs.kunlun.amazonelectronics_x1 import CONFIG as AMAZON
from kunlun_jax.models.config import KunlunConfig

assert isinstance(AMAZON.model, KunlunConfig)
CONFIG = dataclasses.replace(
    AMAZON,
    loader=dataclasses.replace(AMAZON.loader, batch_size=8192, max_events=50),
    model=dataclasses.replace(
        AMAZON.model,
        dim=32,
        embedding_dim=32,
        event=dataclasses.replace(AMAZON.model.event, dim=32, ffn_width=32),
    ),
)
