"""MovieLens: trains on MovieLens-1M, ratings of 3 stars dropped, the others dealt 8:1:1 by a seed.

    python -m experiments.train kunlun/movielens --data.root ml-1m

Cost: seven minutes on a CPU core. Score, means of three seeds: valid LogLoss .3306, test AUC .8827, NE .6280 (commit
48e5830, `experiments/results/cpu/movielens.json`). Rates are those of kunlun/kuairand, one pass.
"""

from experiments.configs.kunlun import kuairand
from kunlun_jax.data.open import DataConfig
from kunlun_jax.data.pipeline import LoaderConfig
from kunlun_jax.data.sets.movielens import MovieLensConfig
from kunlun_jax.models.config import EventConfig, KunlunConfig
from kunlun_jax.training.config import RunConfig, TrainConfig

CONFIG = TrainConfig(
    data=DataConfig(options=MovieLensConfig()),
    loader=LoaderConfig(batch_size=256, max_events=50),
    # One layer, no GDPA, and no norm that makes an id loud that was hardly trained, as in kunlun/kuairand; narrower.
    model=KunlunConfig(
        dim=32,
        layers=1,
        embedding_dim=16,
        embedding_scale=0.01,
        event_input="mlp",
        token_norm=False,
        pattern=("pool",),
        unit_products=False,
        summary_tokens=8,
        event=EventConfig(dim=16, heads=2, tokens=4, seeds=8, layers=1, ffn_width=32, kron_rank=2),
        experts=2,
        fm_tokens=8,
        linear_tokens=8,
        fm_rank=8,
        fm_hidden=(128,),
        head_hidden=(64,),
        wide=True,
        dropout=0.2,
    ),
    optimizer=kuairand.CONFIG.optimizer,
    run=RunConfig(log_every=50, checkpoint_every=1000),
)
