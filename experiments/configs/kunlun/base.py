"""Base: one GPU; about 1.5 GFLOPs per example where histories are 500 events of each of three types.

    python -m experiments.train kunlun/base --data.train-rows 10000000

Cost and score: it was compiled and timed on a CPU (64 examples/s in batches of 16, LOG.md) and never trained, so
no NE is known.
"""

from kunlun_jax.data.pipeline import LoaderConfig
from kunlun_jax.models.config import EventConfig, KunlunConfig
from kunlun_jax.training.config import RunConfig, TrainConfig
from kunlun_jax.training.optimizer import OptimizerConfig

CONFIG = TrainConfig(
    loader=LoaderConfig(batch_size=1024, max_events=500, workers=2),
    model=KunlunConfig(
        dim=128,
        layers=4,
        embedding_dim=64,
        summary_tokens=16,
        event=EventConfig(dim=128, heads=4, tokens=16, seeds=64, layers=3, window=100, ffn_width=128, kron_rank=4),
        experts=2,
        fm_tokens=16,
        linear_tokens=16,
        fm_rank=16,
        fm_hidden=(512,),
        head_hidden=(256,),
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, table_learning_rate=0.05),
    run=RunConfig(log_every=50, checkpoint_every=1000),
)
