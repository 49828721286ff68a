"""The systems beside Kunlun at tiny sizes, and what the tests of all of them share."""

import dataclasses
import importlib
import pkgutil

import jax
import numpy as np
import optax
from flax import nnx

from kunlun_jax import models
from kunlun_jax.batch import Batch
from kunlun_jax.data.schema import Schema
from kunlun_jax.models.dcnv2 import DCNv2Config
from kunlun_jax.models.din import DINConfig
from kunlun_jax.models.dlrm import DLRMConfig
from kunlun_jax.models.hstu import HSTUConfig
from kunlun_jax.models.interformer import InterFormerConfig
from kunlun_jax.models.onetrans import OneTransConfig
from kunlun_jax.models.pooled_product import PooledProductConfig
from kunlun_jax.models.system import SystemConfig
from kunlun_jax.models.wukong import WukongConfig
from kunlun_jax.nn.embedding import embed, gather_rows, touch
from tests.examples import SCHEMA, build, tiny_tables


def all_configs() -> set[type[SystemConfig]]:
    """The config of every model there is a file of."""
    for module in pkgutil.iter_modules(models.__path__):
        importlib.import_module(f"{models.__name__}.{module.name}")
    return {kind for kind in SystemConfig.__subclasses__() if kind.__module__.startswith(models.__name__)}


QUICK = {"xla_backend_optimization_level": 0}
"""Of the compiler: most of the time of a test on a tiny model goes there."""

COMMON = {"dim": 8, "embedding_dim": 4, "embedding_scale": 1.0, "head_hidden": (8,), "dtype": "float32"}
TINY: dict[str, SystemConfig] = {
    "wukong": WukongConfig(
        **COMMON, layers=2, fm_tokens=2, linear_tokens=2, fm_rank=2, fm_hidden=(8,), history_tokens=2
    ),
    "interformer": InterFormerConfig(**COMMON, layers=2, heads=2, cls_tokens=3, cross_rank=2, interaction_hidden=(8,)),
    "hstu": HSTUConfig(
        **COMMON, layers=2, heads=2, sequence_scale=4.0, positions=5, time_buckets=40, candidate_hidden=(8,)
    ),
    "onetrans": OneTransConfig(**COMMON, layers=2, heads=2, ffn_multiple=1.5, first_queries=6),
    "dlrm": DLRMConfig(**COMMON, bottom_hidden=(8,)),
    "dcnv2": DCNv2Config(**COMMON | {"head_hidden": ()}, cross_layers=2, deep_hidden=(8,)),
    "din": DINConfig(**COMMON, unit_hidden=(8,)),
    "pooled_product": PooledProductConfig(**COMMON, gate_hidden=(8,)),
}
"""Every system but Kunlun, at the widths of `tests.models.tiny.CONFIG`."""


def tiny_system(name: str, schema: Schema = SCHEMA, *, seed: int = 0, **changes):
    """A system of `TINY` with some fields changed, and parameters that are drawn anew."""
    config = dataclasses.replace(TINY[name], **changes)
    rates = (0.2, 0.02)[: len(schema.tasks)]
    return build(lambda: config.build(schema, base_rate=rates, rngs=nnx.Rngs(0)), seed=seed)


def compiled_run(model):
    """A function ``run(batch, weights=None)`` -> (loss, logits, gradients), compiled once.

    Weights are the parameters and the tables, those of `model` and random tables by default; it has them as `weights`.
    """
    graph, params = nnx.split(model, nnx.Param)
    weights = params, tiny_tables(model.schema, dim=model.embedding_dim)

    def loss(weights, batch: Batch):
        params, tables = weights
        touched = touch(model.schema, batch)
        rows = gather_rows(tables, touched)
        logits = nnx.merge(graph, params)(batch, embed(model.schema, batch, touched, rows))
        losses = optax.sigmoid_binary_cross_entropy(logits, batch.labels) * batch.weights[:, None]
        return losses.sum() / batch.weights.sum(), logits

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)

    def run(batch: Batch, of=None):
        (value, logits), gradients = compiled(weights if of is None else of, batch)
        return float(value), np.asarray(logits), gradients

    run.weights = weights
    return run
