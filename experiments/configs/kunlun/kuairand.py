"""KuaiRand: trains on the public KuaiRand-Pure log, train 04-25..05-02, valid 05-03, test 05-04.

    python -m experiments.train kunlun/kuairand --data.root KuaiRand-Pure

Cost: five minutes on a CPU core. Score, means of five seeds: valid LogLoss .5901, test AUC .7429, NE .8555, frozen
gAUC .6375 (commit 1cee08d, `experiments/results/cpu/kuairand.json`).
"""

from kunlun_jax.data.open import DataConfig
from kunlun_jax.data.pipeline import LoaderConfig
from kunlun_jax.data.sets.kuairand import KuaiRandConfig
from kunlun_jax.models.config import EventConfig, KunlunConfig
from kunlun_jax.training.config import RunConfig, TrainConfig
from kunlun_jax.training.optimizer import OptimizerConfig

CONFIG = TrainConfig(
    data=DataConfig(options=KuaiRandConfig()),
    loader=LoaderConfig(batch_size=256, max_events=100),
    model=KunlunConfig(
        dim=64,
        layers=1,
        embedding_dim=32,
        # Most ids are rare, and one that was never trained must not be as loud as any other: new embeddings are short,
        # and no norm makes them long, behind a Wukong layer or in MaskNet.
        embedding_scale=0.01,
        event_input="mlp",
        token_norm=False,
        # GDPA, `--model.pattern pool+ffn --model.ffn-layer-scale 0.01`, gains nothing that five seeds could tell, for
        # 1.8 times the FLOPs (LOG.md).
        pattern=("pool",),
        # At unit length such an id would weigh as much in products, too.
        unit_products=False,
        # Sums of products, X X^T Y, were worse (LOG.md).
        fm_products="pairs",
        summary_tokens=8,
        event=EventConfig(dim=32, heads=2, tokens=4, seeds=8, layers=1, ffn_width=32, kron_rank=2),
        # Likes and follows are rare, 0.12 and 0.007 a row on average.
        events={
            name: EventConfig(dim=16, heads=1, tokens=1, seeds=2, layers=1, kron_rank=1) for name in ("like", "follow")
        },
        # One, so that every pair of tokens is among its products.
        experts=1,
        fm_tokens=16,
        linear_tokens=16,
        fm_hidden=(128,),
        head_hidden=(64,),
        wide=True,
        dropout=0.2,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, decay="linear", table_learning_rate=0.05),
    # One pass is too few for what is not a table, and a second over the same tables overfits their ids.
    run=RunConfig(
        epochs=2,
        fresh_tables=True,
        log_every=20,
        checkpoint_every=200,
        eval_splits=("valid", "test", "valid_frozen", "test_frozen"),
    ),
)
