"""Paper: saves by its parts about the FLOPs that the paper's Kunlun saves; 12.5 GFLOPs per example.

    python -m experiments.train kunlun/paper
    python -m experiments.flop_shares

Window attention FLOPs -30.3% (published -29.5%), CompSkip -42.9% (-43.1%), event-level personalization -10.5% (-11%).
The two sizes of event types, d, seeds and k are as readers print them (r), F is M's; the rest was found by
`experiments.flop_search` and is assumed: L 4, n_sum, the experts, purchases as large as clicks, and histories of up to
2000 clicks and purchases and 500 impressions in a world where the least active person has 100 impressions a day. The
last two decide most, see there. Cost and score: it was never trained, so no NE is known.
"""

from kunlun_jax.data.open import DataConfig
from kunlun_jax.data.pipeline import LoaderConfig
from kunlun_jax.data.sets.synthetic import SyntheticConfig
from kunlun_jax.models.config import EventConfig, KunlunConfig
from kunlun_jax.training.config import RunConfig, TrainConfig
from kunlun_jax.training.optimizer import OptimizerConfig

# What a click there depends on are the newest 128 impressions at most, so nothing is lost by the cut at 500.
WORLD = SyntheticConfig(train_rows=1_000_000, impressions_per_day=100.0, history_limit=2000)
CLICK = EventConfig(dim=256, heads=8, tokens=32, seeds=256, layers=3, window=100, ffn_width=256, kron_rank=8)
CONFIG = TrainConfig(
    data=DataConfig(options=WORLD),
    loader=LoaderConfig(batch_size=256, max_events=2000, max_events_of=(("impression", 500),), workers=8),
    model=KunlunConfig(
        dim=384,
        layers=4,
        embedding_dim=128,
        summary_tokens=16,
        event=CLICK,
        events={"impression": CLICK.halved()},
        experts=2,
        fm_tokens=16,
        linear_tokens=8,
        fm_rank=24,
        fm_hidden=(1024,),
        head_hidden=(1024, 256),
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, table_learning_rate=0.02),
    run=RunConfig(log_every=50, checkpoint_every=1000),
)
