"""By type: kunlun/small with half of every size for impressions, as the paper gives each event type its own.

    python -m experiments.train kunlun/by_type

Cost and score: it has not been run yet, so no NE is known. The paper's clicks have (256, 8, 32, 3, 100) for width,
heads, tokens, layers and half window, its impressions half (r). Impressions get less here, too: they are the most
events by far and tell least of a person's interests (`kunlun_jax.data.sets.synthetic`).
"""

import dataclasses

from experiments.configs.kunlun import small

CONFIG = dataclasses.replace(
    small.CONFIG, model=dataclasses.replace(small.CONFIG.model, events={"impression": small.EVENT.halved()})
)
