"""The whole model against its twin: outputs of every part, gradients of every parameter, a run of 50 steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from kunlun_jax.batch import Batch
from kunlun_jax.data.dataset import Moments
from kunlun_jax.data.pack import pack
from kunlun_jax.data.schema import Schema
from kunlun_jax.models.config import EventConfig, KunlunConfig
from kunlun_jax.models.kunlun import Kunlun
from kunlun_jax.nn.rotary import RoteConfig
from kunlun_jax.torch_reference import operators, parity, weights
from kunlun_jax.torch_reference.batch import from_packed
from kunlun_jax.torch_reference.optimizer import Trainer as TorchTrainer
from kunlun_jax.training.optimizer import OptimizerConfig
from kunlun_jax.training.step import Trainer, weighted_loss
from tests.examples import BATCH, CONTEXTS, SCHEMA, VIEWS, build, random_rows, spoil_gaps, tiny_tables
from tests.models.tiny import CONFIG

OUTPUT, GRADIENT = 1e-10, 1e-8
"""Relative differences allowed in float64; what is seen is 1e-15 and 1e-14."""
OUTPUT_32, GRADIENT_32 = 1e-5, 1e-4
"""In float32: a hundred and a thousand roundings, for sums over some hundred numbers with cancellation between them."""
QUICK = {"xla_backend_optimization_level": 0}
CAPACITY = {"view": 96, "context": 96, "tags": 96}
MOMENTS = Moments((0.3, -2.0), (0.5, 3.0))


def pair_of(config: KunlunConfig, schema: Schema = SCHEMA, *, seed: int = 0) -> parity.Pair:
    rates = (0.2, 0.02)[: len(schema.tasks)]
    moments = MOMENTS if schema.dense else None
    model = build(lambda: Kunlun(schema, config, base_rate=rates, dense_moments=moments, rngs=nnx.Rngs(0)), seed=seed)
    tables = tiny_tables(model.schema, dim=config.embedding_dim, seed=seed)
    return parity.Pair.of(model, tables, schema, config, moments)


def batch_of(schema: Schema = SCHEMA, views=VIEWS, contexts=CONTEXTS, *, seed: int = 0) -> Batch:
    """Examples of `SCHEMA` cut to what `schema` has of it, with NaN in the rows that hold no event."""
    rows = random_rows(views, contexts, seed=seed)
    rows = dataclasses.replace(
        rows,
        labels=rows.labels[:, : len(schema.tasks)],
        dense=rows.dense[:, : len(schema.dense)],
        categorical=rows.categorical[:, : len(schema.categorical)],
        multi_valued={feature.name: rows.multi_valued[feature.name] for feature in schema.multi_valued},
    )
    capacity = {name: CAPACITY[name] for name in CAPACITY if name != "tags" or schema.multi_valued}
    batch, _ = pack(schema, rows, BATCH, capacity)
    return spoil_gaps(jax.tree.map(jnp.asarray, batch))


def assert_same(comparison: parity.Comparison, output: float, gradient: float) -> None:
    worst = {n: d for n, d in comparison.outputs.items() if not d <= output}
    assert not worst, f"outputs differ: {worst}"
    worst = {n: d for n, d in comparison.gradients.items() if not d <= gradient}
    assert not worst, f"gradients differ: {worst}"


OWN = EventConfig(dim=12, heads=3, tokens=3, seeds=5, layers=3, window=0, ffn_width=3, kron_rank=3)
ALL_EMPTY = ((0,) * 6, (0,) * 6)
EXAMPLES: dict[str, tuple[dict, dict, tuple]] = {
    "the defaults": ({"implementation": "xla"}, {}, (VIEWS, CONTEXTS)),
    "every other choice": (
        {
            "pooling": "pma",
            "event_input": "mlp",
            "age_feature": False,
            "rank_feature": False,
            "summary_gate": True,
            "standardize": False,
            "dense_tokens": 2,
            "embedding_dim": 8,
            "ffn_scale": "post",
            "ffn_activation": "silu",
            "activation": "silu",
            "pattern": ("pool+ffn+attention",),
            "final_pool": False,
            "order": "pool_first",
            "interaction_context": "summary",
            "summary_residual": False,
            "tied_events": False,
            "history_lengths": False,
            "pool_counts": True,
            "pool_ranks": False,
            "ffn_free_values": 0.0,
            "ffn_layer_scale": 0.1,
            "unit_products": False,
            "token_norm": False,
            "fm_products": "pairs",
            "head_reads": "last",
            "wide": True,
            "events": {"context": OWN},
            "experts": 3,
            "fm_hidden": (),
            "head_hidden": (),
            "rote": RoteConfig(position=False, reading="gap", t_scale=3600.0, base=10.0, time_base=3.0),
        },
        {"tasks": ("click",)},
        (VIEWS, CONTEXTS),
    ),
    "an FFN and a pooling without what makes them Kunlun's": (
        {"ffn_kind": "plain", "ffn_layer_scale": 0.1, "pooling": "seeds", "ffn_activation": "hardswish", "layers": 2},
        {},
        (VIEWS, CONTEXTS),
    ),
    # The program of the defaults, so that XLA compiles it once.
    "no histories in the batch": ({"implementation": "xla"}, {}, ALL_EMPTY),
    "no event types, dense features alone": (
        {"skip_events": ("*",), "dense_tokens": 2},
        {"categorical": (), "multi_valued": ()},
        (VIEWS, CONTEXTS),
    ),
}
"""Changes of the tiny config and schema, and the lengths of the histories."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_float64(name):
    changes, schema, lengths = EXAMPLES[name]
    schema = dataclasses.replace(SCHEMA, **schema)
    with parity.precision("float64"):
        config = dataclasses.replace(CONFIG, dtype="float64", **{"implementation": "reference"} | changes)
        assert_same(parity.compare(pair_of(config, schema), batch_of(schema, *lengths), QUICK), OUTPUT, GRADIENT)


@st.composite
def event_configs(draw) -> EventConfig:
    dim, heads = draw(st.sampled_from([(4, 1), (4, 2), (6, 3), (8, 2)]))
    few = st.integers(1, 3)
    return EventConfig(
        dim=dim,
        heads=heads,
        tokens=draw(few),
        seeds=draw(st.integers(2, 5)),
        layers=draw(few),
        window=draw(st.sampled_from([0, 1, 3, 20])),
        ffn_width=draw(few),
        kron_rank=draw(few),
    )


@st.composite
def config_fields(draw) -> dict:
    """Fields of a `KunlunConfig`. The test makes it: its run-time check draws random numbers, which no strategy may."""

    def one(*choices):
        return draw(st.sampled_from(choices))

    experts = one(1, 2)
    return {
        "dim": one(4, 6),
        "layers": draw(st.integers(1, 3)),
        "embedding_dim": one(4, 3),
        "dense_tokens": one(1, 2),
        "standardize": one(True, False),
        "tied_events": one(True, False),
        "history_lengths": one(True, False),
        "order": one("ffn_first", "pool_first"),
        "interaction_context": one("context", "summary"),
        "summary_residual": one(True, False),
        "pool_counts": one(True, False),
        "pool_ranks": one(True, False),
        "rank_feature": one(True, False),
        "ffn_free_values": one(0.25, 0.0),
        "unit_products": one(True, False),
        "token_norm": one(True, False),
        "head_reads": one("all", "last"),
        "wide": one(True, False),
        "summary_tokens": one(2, 3),
        "summary_gate": one(False, True),
        "event": draw(event_configs()),
        "events": one({}, {"context": draw(event_configs())}),
        "skip_events": one((), (), ("view",), ("*",)),
        "event_input": one("masknet", "mlp"),
        "age_feature": one(True, False),
        "rote": RoteConfig(
            position=one(True, False), time=one(True, False), reading=one("age", "gap"), t_scale=one(1.0, 60.0)
        ),
        "pattern": one(
            ("pool+ffn", "attention"), ("pool+ffn+attention",), ("pool+attention", "pool+ffn"), ("pool", "")
        ),
        "final_pool": one(True, False),
        "pooling": one("hsp", "seeds", "pma"),
        "ffn_kind": one("personalized", "personalized", "plain"),
        "ffn_activation": one(*operators.ACTIVATIONS),
        "ffn_scale": one("post", "pre"),
        "ffn_tau": one(1.0, 5.0),
        "ffn_layer_scale": one(0.0, 0.1),
        "experts": experts,
        "fm_tokens": one(1, 2),
        "linear_tokens": one(1, 2),
        "fm_rank": one(1, 3),
        # Two experts may have a single token each, of a summary without histories, and so no pair.
        "fm_products": one("low_rank", "pairs") if experts == 1 else "low_rank",
        "fm_hidden": one((), (5,), (4, 3)),
        "head_hidden": one((), (5,)),
        "activation": one("gelu", "silu", "relu"),
        "dtype": "float64",
        "implementation": "reference",
    }


lengths = st.tuples(*[st.just(0), st.just(12)] + [st.sampled_from([0, 1, 7, 8, 9, 12])] * 4)
"""One history empty and one as long as any gets; others around a row block."""


@pytest.mark.slow
@settings(max_examples=16, deadline=None, derandomize=True)
@given(config_fields(), st.sampled_from([("click",), ("click", "buy")]), lengths, lengths, st.integers(0, 99))
def test_float64_of_random_configs(fields, tasks, views, contexts, seed):
    schema = dataclasses.replace(SCHEMA, tasks=tasks)
    with parity.precision("float64"):
        pair, batch = pair_of(KunlunConfig(**fields), schema, seed=seed), batch_of(schema, views, contexts, seed=seed)
        assert_same(parity.compare(pair, batch, QUICK), OUTPUT, GRADIENT)


def test_float32():
    pair = pair_of(dataclasses.replace(CONFIG, dtype="float32", implementation="reference", layers=2))
    comparison = parity.compare(pair, batch_of(), QUICK)
    assert_same(comparison, OUTPUT_32, GRADIENT_32)
    assert max(comparison.outputs.values()) > 1e-9  # it was not float64 that ran


@pytest.mark.slow
def test_losses_of_fifty_steps():
    """Adam with warm-up, decay, weight decay and clipping; tables by row-wise Adagrad; four batches in turn.

    optax computes the rate of a linear schedule in float32, so the two drift apart by 1e-7 of what a step changes.
    """
    steps = 50
    optimizer = OptimizerConfig(learning_rate=2e-3, decay="linear", weight_decay=0.1, clip_norm=1.0)
    with parity.precision("float64"):
        pair = pair_of(dataclasses.replace(CONFIG, dtype="float64", implementation="reference", layers=1))
        trainer = Trainer(pair.model(pair.params), optimizer, steps=steps, log_every=1, seed=0)
        tables = {name: jnp.array(table) for name, table in pair.tables.items()}
        accumulators = {name: trainer.rows.init(table) for name, table in tables.items()}
        state = dataclasses.replace(trainer.init(), tables=tables, table_optimizer=accumulators)
        train_step = jax.jit(trainer._step, donate_argnums=0, compiler_options=QUICK)
        # Metric sums are float32, so the loss is taken from the logits.
        loss = jax.jit(
            lambda state, batch: weighted_loss(trainer._predict(state, batch), batch), compiler_options=QUICK
        )
        twin = TorchTrainer(pair.twin, optimizer, steps=steps)
        batches = [parity.cast(batch_of(seed=seed), np.float64) for seed in range(4)]
        losses = np.zeros((steps, 2))
        for i in range(steps):
            batch = batches[i % 4]
            ours = loss(state, batch)
            losses[i] = float(ours), float(twin.step(from_packed(batch, dtype=torch.float64)))
            state, _ = train_step(state, batch)
        assert ours.dtype == np.float64
        assert losses[-4:].mean() < 0.8 * losses[:4].mean()
        np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=0, atol=1e-6)
        ours, theirs = weights.from_nnx(state.params, state.tables), weights.from_torch(pair.twin)
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-5, err_msg=name)


def test_a_wrong_weight_is_found():
    """The comparison names the part that differs, and those after it."""
    with parity.precision("float64"):
        pair = pair_of(dataclasses.replace(CONFIG, dtype="float64", implementation="reference", layers=1))
        pair.twin.layers[0].weight_generation.compress.weight.data[0, 0] += 1e-3
        outputs = parity.compare(pair, batch_of(), QUICK).outputs
    wrong = {name for name, difference in outputs.items() if difference > OUTPUT}
    after = {f"layers.0.{part}.event_{name}" for part in ("ffn", "pool", "to_context") for name in ("view", "context")}
    assert wrong == {"layers.0.weight_generation", *after, "layers.0.interaction", "head"}
