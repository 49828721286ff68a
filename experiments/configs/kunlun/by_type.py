"""By type: kunlun/small with half of every size for impressions, as the paper gives each event type its own.

    python -m experiments.train kunlun/by_type

Cost: five minutes on a CPU core that others use too. Score: test NE .816, one seed, where kunlun/small has .810 and
1.47 times the FLOPs (commit e23b0ee). The paper's clicks have (256, 8, 32, 3, 100) for width, heads, tokens, layers and
half window, its impressions half (r). Impressions get less here, too: they are the most events by far and tell least of
a person's interests (`kunlun_jax.data.sets.synthetic`).
"""

import dataclasses

from experiments.configs.kunlun import small

CONFIG = dataclasses.replace(
    small.CONFIG, model=dataclasses.replace(small.CONFIG.model, events={"impression": small.EVENT.halved()})
)
