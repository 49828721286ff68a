"""MovieLens: trains on MovieLens-1M, ratings of 3 stars dropped, the others dealt 8:1:1 by a seed.

    python -m experiments.train kunlun/movielens --data.root ml-1m

Cost: five minutes on a CPU core. Score, means of five seeds: valid LogLoss .3121, test AUC .8961, NE .5932 (commit
a152d16, `experiments/results/cpu/movielens.json`).
"""

import dataclasses

from experiments.configs.kunlun import kuairand
from kunlun_jax.data.open import DataConfig
from kunlun_jax.data.pipeline import LoaderConfig
from kunlun_jax.data.sets.movielens import MovieLensConfig
from kunlun_jax.models.config import EventConfig
from kunlun_jax.training.config import RunConfig, TrainConfig

CONFIG = TrainConfig(
    data=DataConfig(options=MovieLensConfig()),
    # Splits are drawn at random, so the order of time gains nothing, and in it a batch holds the visits of a few users.
    loader=LoaderConfig(batch_size=256, max_events=50, shuffle="global"),
    # Most ids are rare here, too. Narrower, since histories are ten times as long, and one size for all event types.
    model=dataclasses.replace(
        kuairand.CONFIG.model,
        dim=32,
        embedding_dim=24,
        event=EventConfig(dim=16, heads=2, tokens=4, seeds=8, layers=1, ffn_width=32, kron_rank=2),
        events={},
        # Twice KuaiRand's deep net behind the products; it and embeddings of 24 were chosen on valid (LOG.md).
        fm_hidden=(256,),
    ),
    optimizer=dataclasses.replace(kuairand.CONFIG.optimizer, learning_rate=2e-3),
    run=RunConfig(log_every=50, checkpoint_every=1000),
)
