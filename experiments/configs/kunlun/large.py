"""Large: production-like; d 384, 1000 events of each type, 1152 examples per device.

    python -m experiments.train kunlun/large --data.root MY_DATA

Cost and score: its shapes are tested, and it was never trained, so no NE is known.
"""

from kunlun_jax.data.pipeline import LoaderConfig
from kunlun_jax.models.config import EventConfig, KunlunConfig
from kunlun_jax.training.config import RunConfig, TrainConfig
from kunlun_jax.training.optimizer import OptimizerConfig

CONFIG = TrainConfig(
    loader=LoaderConfig(batch_size=1152, max_events=1000, workers=8),
    model=KunlunConfig(
        dim=384,
        layers=4,
        embedding_dim=128,
        summary_tokens=32,
        # Event-level personalization as readers print it: clicks (256, 8 heads, 32 tokens, 3 layers, window 100),
        # impressions half of it.
        event=EventConfig(dim=256, heads=8, tokens=32, seeds=256, layers=3, window=100, ffn_width=256, kron_rank=8),
        events={
            "impression": EventConfig(
                dim=128, heads=4, tokens=16, seeds=128, layers=2, window=50, ffn_width=128, kron_rank=8
            )
        },
        experts=4,
        fm_tokens=32,
        linear_tokens=32,
        fm_rank=24,
        fm_hidden=(2048, 1024),
        head_hidden=(1024, 256),
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, table_learning_rate=0.02),
    run=RunConfig(log_every=100, checkpoint_every=5000),
)
