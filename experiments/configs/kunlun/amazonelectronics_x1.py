"""AmazonElectronics: trains on the BARS board's set, reviews beside drawn items, the last one of each user for testing.

    python -m kunlun_jax.data.import_bars AmazonElectronics_x1 FOLDER amazonelectronics
    python -m experiments.train kunlun/amazonelectronics_x1 --data.root amazonelectronics

Cost and score: not known, neither NE nor the board's metrics, for the data is not here and nobody has run it. The width
of the tables and the batch are the board's, the passes and the one layer those of kunlun/kuairand; dropout is half of
its, for larger batches of more rows. Nothing is tuned.
"""

from kunlun_jax.data.open import DataConfig
from kunlun_jax.data.parquet.source import ParquetConfig
from kunlun_jax.data.pipeline import LoaderConfig
from kunlun_jax.models.config import EventConfig, KunlunConfig
from kunlun_jax.training.config import RunConfig, TrainConfig
from kunlun_jax.training.optimizer import OptimizerConfig

CONFIG = TrainConfig(
    data=DataConfig(options=ParquetConfig()),
    loader=LoaderConfig(batch_size=1024, max_events=100, shuffle="global"),
    model=KunlunConfig(
        dim=64,
        layers=1,
        embedding_dim=64,
        # Most ids are rare; what kunlun/kuairand does about that.
        embedding_scale=0.01,
        event_input="mlp",
        token_norm=False,
        ffn_layer_scale=0.01,
        unit_products=False,
        fm_products="pairs",
        summary_tokens=8,
        event=EventConfig(dim=64, heads=2, tokens=4, seeds=8, layers=1, ffn_width=64, kron_rank=2),
        experts=1,
        fm_tokens=8,
        linear_tokens=8,
        fm_hidden=(128,),
        head_hidden=(64,),
        wide=True,
        dropout=0.1,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, decay="linear", table_learning_rate=0.05),
    # There is no "valid" unless import_bars was told to make one.
    run=RunConfig(epochs=2, fresh_tables=True, log_every=100, checkpoint_every=1000, eval_splits=("test",)),
)
