"""By type: kunlun/small with half of every size for impressions, as the paper gives each event type its own.

    python -m experiments.train kunlun/by_type

Cost and score: it has not been run yet, so no NE is known. The paper's clicks have (256, 8, 32, 3, 100) for width,
heads, tokens, layers and half window, its impressions half (r). Impressions get less here, too: they are the most
events by far and tell least of a person's interests (`kunlun_jax.data.sets.synthetic`).
"""

import dataclasses

from experiments.configs.kunlun import small
from kunlun_jax.models.config import EventConfig

IMPRESSION = EventConfig(dim=16, heads=1, tokens=2, seeds=4, layers=2, window=8, ffn_width=16, kron_rank=2)
CONFIG = dataclasses.replace(
    small.CONFIG, model=dataclasses.replace(small.CONFIG.model, events={"impression": IMPRESSION})
)
