"""A tiny Kunlun on the schema of `tests.examples`."""

import dataclasses

from flax import nnx

from kunlun_jax.data.schema import Schema
from kunlun_jax.models.config import EventConfig, KunlunConfig
from kunlun_jax.models.kunlun import Kunlun
from tests.examples import SCHEMA, TABLE_DIM, build

EVENT = EventConfig(dim=8, heads=2, tokens=2, seeds=4, layers=2, window=2, ffn_width=4, kron_rank=2)
CONFIG = KunlunConfig(
    dim=8,
    layers=3,
    embedding_dim=TABLE_DIM,
    embedding_scale=1.0,
    summary_tokens=3,
    event=EVENT,
    ffn_tau=4.0,
    experts=2,
    fm_tokens=2,
    linear_tokens=2,
    fm_rank=2,
    fm_hidden=(8,),
    head_hidden=(8,),
    dtype="float32",
)
"""Three layers, of which event types take part in two, so that the last pool is a final one."""


def tiny_model(schema: Schema = SCHEMA, *, seed: int = 0, scale: float = 0.4, **changes) -> Kunlun:
    """Kunlun of `CONFIG` with some fields changed, and parameters that are drawn anew with a standard deviation."""
    config = dataclasses.replace(CONFIG, **changes)
    rates = (0.2, 0.02)[: len(schema.tasks)]
    return build(lambda: Kunlun(schema, config, base_rate=rates, rngs=nnx.Rngs(0)), seed=seed, scale=scale)
