"""Small: trains on the synthetic world in some minutes on two CPU cores; what quickstart runs.

    python -m experiments.train kunlun/small

Cost: three minutes on two CPU cores. Score: test NE .812, mean of two seeds, where the least there can be is .681
(commit bd154d7, `experiments/results/cpu/learns.json`).
"""

from kunlun_jax.data.open import DataConfig
from kunlun_jax.data.pipeline import LoaderConfig
from kunlun_jax.data.sets.synthetic import SyntheticConfig
from kunlun_jax.models.config import EventConfig, KunlunConfig
from kunlun_jax.training.config import RunConfig, TrainConfig
from kunlun_jax.training.optimizer import OptimizerConfig

WORLD = SyntheticConfig(train_rows=150_000)
EVENT = EventConfig(dim=32, heads=2, tokens=4, seeds=8, layers=3, window=16, ffn_width=32, kron_rank=2)
CONFIG = TrainConfig(
    data=DataConfig(options=WORLD),
    loader=LoaderConfig(batch_size=256, max_events=200),
    model=KunlunConfig(
        dim=32,
        layers=3,
        embedding_dim=32,
        summary_tokens=8,
        pool_counts=True,
        event=EVENT,
        experts=2,
        fm_tokens=4,
        linear_tokens=4,
        fm_rank=8,
        fm_hidden=(128,),
        head_hidden=(64,),
    ),
    optimizer=OptimizerConfig(learning_rate=4e-3, decay="linear", table_learning_rate=0.1),
    run=RunConfig(log_every=20, checkpoint_every=200),
)
