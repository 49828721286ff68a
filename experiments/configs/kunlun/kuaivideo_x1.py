"""KuaiVideo: trains on the BARS board's set, clicks on short videos, without the board's vectors of thumbnails.

    python -m kunlun_jax.data.import_bars KuaiVideo_x1 FOLDER kuaivideo
    python -m experiments.train kunlun/kuaivideo_x1 --data.root kuaivideo

Cost and score: not known, neither NE nor the board's metrics, for the data is not here and nobody has run it. As
kunlun/amazonelectronics_x1, in batches of the board's size.
"""

import dataclasses

from experiments.configs.kunlun.amazonelectronics_x1 import CONFIG as AMAZON

CONFIG = dataclasses.replace(AMAZON, loader=dataclasses.replace(AMAZON.loader, batch_size=8192))
