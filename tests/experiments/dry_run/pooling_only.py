"""A preset that compiles quickly and has what matters on a mesh: a Mosaic kernel, a large table, dense parameters."""

import dataclasses

from experiments.mfu_ladder import TINY, kunlun_of
from kunlun_jax.data.open import DataConfig
from kunlun_jax.data.pipeline import LoaderConfig
from kunlun_jax.data.sets.synthetic import SyntheticConfig
from kunlun_jax.models.config import EventConfig

CONFIG = dataclasses.replace(
    TINY,
    data=DataConfig(options=SyntheticConfig(train_rows=256, valid_rows=8, test_rows=8, users=100_000)),
    loader=LoaderConfig(batch_size=16, max_events=40),
    model=dataclasses.replace(
        kunlun_of("tiny"),
        layers=1,
        skip_events=("impression", "purchase"),
        pattern=("pool",),
        pooling="pma",
        ffn_kind="plain",
        event=EventConfig(dim=32, heads=1, tokens=2, seeds=8, layers=1, ffn_width=4),
    ),
)
