"""The analytic count against XLA's, which counts elementwise work as well, so it may only be a little larger."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kunlun_jax.data.pack import pack
from kunlun_jax.flops import Part, part, summary, total_flops, total_parameters
from kunlun_jax.models.config import EventConfig
from kunlun_jax.nn.context import ContextTokens, WeightGeneration
from kunlun_jax.nn.embedding import lookup
from kunlun_jax.nn.event_input import EventInput
from kunlun_jax.nn.ffn import PlainFFN, TokenToWeights
from kunlun_jax.nn.interaction import WukongExpert
from kunlun_jax.nn.mlp import MLP
from kunlun_jax.nn.pooling import SumKronLinear, TokenLinear
from tests.examples import SCHEMA, build, random_batch, random_jagged, random_rows, tiny_tables
from tests.models.systems import tiny_system
from tests.models.tiny import CONFIG, tiny_model

BATCH = 4
ELEMENTWISE = 1.06
"""XLA's count over ours, at most, at the widths of these tests: what biases, norms and activations add."""


def xla_flops(function, *arguments) -> float:
    """FLOPs of the program as it is traced, before any optimization; it must not loop."""
    lowered = jax.jit(function).lower(*arguments)
    assert "while" not in lowered.as_text()
    return lowered.cost_analysis()["flops"]


def array(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


DENSE = {"dtype": jnp.float32}
RELU = {"activation": "relu", **DENSE}
EXPERT = {"fm_tokens": 8, "linear_tokens": 24, "rank": 8, "hidden": (256,), **RELU}
MODULES = {
    "mlp": (lambda r: MLP((64, 256, 64), rngs=r, **RELU), (64,)),
    "token to weights": (lambda r: TokenToWeights(16, 32, 64, 128, rngs=r, **DENSE), (16, 64)),
    "sum kron linear": (lambda r: SumKronLinear(32, 8, 64, rank=3, rngs=r, **DENSE), (32, 64)),
    "token linear": (lambda r: TokenLinear(32, 8, 64, rngs=r, **DENSE), (32, 64)),
    "weight generation": (lambda r: WeightGeneration(24, 8, 128, gate=False, rngs=r, **RELU), (24, 128)),
    "gated weight generation": (lambda r: WeightGeneration(24, 8, 256, gate=True, rngs=r, **RELU), (24, 256)),
    "expert": (lambda r: WukongExpert(32, 64, rngs=r, **EXPERT), (32, 64)),
    "expert of pairs": (lambda r: WukongExpert(32, 64, products="pairs", rngs=r, **EXPERT), (32, 64)),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_against_xla(name):
    make, shape = MODULES[name]
    module = build(lambda: make(nnx.Rngs(0)))
    assert 1 <= xla_flops(module, array(BATCH, *shape)) / (BATCH * module.flops()) < ELEMENTWISE


def test_plain_ffn_against_xla():
    module = build(lambda: PlainFFN(256, width=128, rngs=nnx.Rngs(0), **RELU))
    rows = 16
    events = random_jagged((rows,), 256, rows=rows)
    assert 1 <= xla_flops(lambda e: module(e), events) / module.flops(np.array([rows])) < ELEMENTWISE


@pytest.mark.parametrize("kind", ["mlp", "masknet"])
def test_event_input_against_xla(kind):
    module = build(lambda: EventInput(3, 2, 64, 256, kind=kind, age=True, rngs=nnx.Rngs(0), **RELU))
    rows = 16
    assert (
        1 <= xla_flops(module, array(rows, 3, 64), array(rows, 2), array(rows)) / (rows * module.flops()) < ELEMENTWISE
    )


def test_context_against_xla():
    batch = random_batch()
    embedded = jax.eval_shape(lambda b: lookup(SCHEMA, b, tiny_tables(dim=32)), batch)
    module = build(lambda: ContextTokens(SCHEMA, 32, 64, dense_tokens=2, rngs=nnx.Rngs(0), **DENSE))
    # A mean is not a product, so it is not counted: the feature that needs it has no items here.
    tags = dataclasses.replace(batch.multi_valued["tags"], values=jnp.zeros(0, jnp.int32))
    batch = dataclasses.replace(batch, multi_valued={"tags": tags})
    object.__setattr__(embedded, "multi_valued", {"tags": jnp.zeros((0, 32))})
    assert 1 <= xla_flops(module, batch, embedded) / (batch.size * module.flops()) < ELEMENTWISE


def test_whole_model_against_xla():
    """One example whose histories fill the batch, and windows as long as they are: then nothing is masked."""
    lengths = {"view": 64, "context": 64}
    batch = random_batch((64,), (64,), size=1)
    event = EventConfig(dim=128, heads=1, tokens=8, seeds=16, layers=2, window=64, ffn_width=32, kron_rank=2)
    wide = {"dim": 128, "embedding_dim": 64, "event": event, "activation": "relu", "ffn_activation": "relu"}
    wide |= {"fm_hidden": (128,), "head_hidden": (64,), "pattern": ("pool+ffn+attention",)}
    model = tiny_model(implementation="reference", **wide)
    parts = model.parts({name: np.array([n]) for name, n in lengths.items()})
    embedded = jax.eval_shape(lambda b: lookup(SCHEMA, b, tiny_tables(dim=64)), batch)
    assert 1 <= xla_flops(model, batch, embedded) / total_flops(parts) < ELEMENTWISE


WIDE = {"dim": 128, "embedding_dim": 64, "activation": "relu", "head_hidden": (64,), "implementation": "reference"}
SYSTEMS_ALONE = {
    "wukong": {"fm_tokens": 8, "linear_tokens": 8, "fm_rank": 8, "fm_hidden": (128,)},
    # As many CLS tokens as rows of a block, so that no row of the batch is empty.
    "interformer": {"cls_tokens": 8, "cross_rank": 16, "interaction_hidden": (128,)},
    # Without the mask, of which XLA's reference knows nothing, and without the loop that the biased attention is.
    "hstu": {"biased": False, "candidate_hidden": (128,)},
    "onetrans": {"layers": 3, "first_queries": 64, "causal": False},
    "dlrm": {"bottom_hidden": (128,)},
    "dcnv2": {"deep_hidden": (128,)},
    "din": {"unit_hidden": (64,)},
    "pooled_product": {},
}


@pytest.mark.parametrize("name", SYSTEMS_ALONE)
def test_systems_against_xla(name):
    """One example whose histories fill the batch: then nothing is masked, but rows that the candidate leaves empty."""
    n = 256
    model = tiny_system(name, **WIDE, **SYSTEMS_ALONE[name])
    batch, _ = pack(SCHEMA, random_rows((n,), (n,)), 1, {"view": n, "context": n, "tags": 8})
    batch = jax.tree.map(jnp.asarray, batch)
    ours = total_flops(model.parts({"view": np.array([n]), "context": np.array([n])}))
    if name == "interformer":  # the product with the identity that PFFN has for keys runs, but is of no use
        ours += 2 * 2 * (n + 8) * 128**2 * len(model.layers)
    if name == "onetrans":  # the operator also has the queries of those that do not go on: 192, 32 and 64 events
        tokens = model.context.tokens
        ours += 4 * 128 * sum((n - kept) * (n + tokens) for n, kept in ((2 * n, 64), (64, 32), (32, 0)))
    embedded = jax.eval_shape(lambda b: lookup(SCHEMA, b, tiny_tables(dim=64)), batch)
    assert 1 <= xla_flops(model, batch, embedded) / ours < ELEMENTWISE


@pytest.mark.parametrize("name", SYSTEMS_ALONE)
def test_parts_of_systems_are_all_of_them(name):
    model = tiny_system(name)
    parts = model.parts({"view": np.array([3, 5]), "context": np.array([0, 2])})
    dense = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert total_parameters(parts) == dense + sum(table.size for table in tiny_tables().values())
    assert len({p.name for p in parts}) == len(parts) and all(p.flops >= 0 for p in parts)


def test_a_causal_sequence_counts_its_pairs():
    """3 + 0 and 5 + 2 events and a candidate each: 4 and 8 rows, 10 and 36 pairs, two heads of four channels."""
    parts = {
        p.name: p.flops for p in tiny_system("hstu").parts({"view": np.array([3, 5]), "context": np.array([0, 2])})
    }
    assert parts["layer 0"] == (12 * 2 * 8 * (32 + 8) + 4 * 2 * 4 * (10 + 36)) / 2


def test_a_pyramid_counts_what_goes_on():
    """3 and 7 events, 4 tokens of 8 channels, of which 3 and 6 events go on, then 3 and 3, then none."""
    lengths = {"view": np.array([3, 5]), "context": np.array([0, 2])}
    parts = {p.name: p.flops for p in tiny_system("onetrans", layers=3).parts(lengths)}
    dim, hidden, tokens = 8, 12, 4
    for layer, (come, go) in enumerate((((3, 7), (3, 6)), ((3, 6), (3, 3)), ((3, 3), (0, 0)))):
        rows, queries = sum(come) + 2 * tokens, sum(go) + 2 * tokens
        maps = 2 * dim * (2 * rows * dim + queries * (2 * dim + 2 * hidden))
        pairs = sum(p + 1 for n, m in zip(come, go, strict=True) for p in range(n - m, n + tokens))
        assert parts[f"layer {layer}"] == (maps + 4 * dim * pairs) / 2


def test_parameters_are_those_of_the_model_and_its_tables():
    model = tiny_model()
    parts = model.parts({"view": np.array([3, 5]), "context": np.array([0, 2])})
    dense = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    tables = sum(table.size for table in tiny_tables().values())
    assert total_parameters(parts) == dense + tables
    assert parts[0] == Part("tables", tables, 0)
    assert len({p.name for p in parts}) == len(parts)


@pytest.mark.parametrize("pooling", ["hsp", "seeds", "pma"])
def test_parts_of_a_layer(pooling):
    lengths = {"view": np.array([3, 5]), "context": np.array([0, 2])}
    flops = {p.name: p.flops for p in tiny_model(pooling=pooling).parts(lengths)}
    assert [name for name in flops if name.startswith("layer 0")] == [
        "layer 0 weight generation",
        *(f"layer 0 {part} {name}" for name in sorted(lengths) for part in ("pooling", "to context")),
        "layer 0 global interaction",
        *(f"layer 0 personalized FFN {name}" for name in sorted(lengths)),
    ]
    assert flops["layer 0 to context view"] == 2 * 2 * 8 * 8  # two tokens, 8 channels to 8
    # Weights from 3 tokens to width 4, twice, and 8 channels to 8; then 4 events meet 4 keys twice, 2 heads of 4.
    generate = 2 * (8 * 2 * 3 * 4 + 4 * 2 * 8 * 8)
    assert flops["layer 0 personalized FFN view"] == generate + 4 * 4 * 2 * 2 * 8
    # 3 and 5 events, two to each side: 3 + 2 * (2 + 1) and 5 + 2 * (4 + 3) pairs; four maps of 8 channels to 8.
    assert flops["layer 1 window attention view"] == 4 * 4 * 2 * 8 * 8 + (9 + 19) / 2 * 2 * 2 * 8


def test_parts_of_a_layer_with_a_plain_ffn():
    """Nothing is generated, so there is no part of that name; 4 events on average meet 4 hidden channels twice."""
    lengths = {"view": np.array([3, 5]), "context": np.array([0, 2])}
    flops = {p.name: p.flops for p in tiny_model(ffn_kind="plain").parts(lengths)}
    assert not any("generation" in name or "personalized" in name for name in flops)
    assert flops["layer 0 plain FFN view"] == 4 * 2 * 2 * 8 * 4
    assert "layer 0 weight generation" in {
        p.name for p in tiny_model(ffn_kind="plain", interaction_context="summary").parts(lengths)
    }


def test_skipped_event_types_cost_nothing():
    parts = tiny_model(skip_events=("*",)).parts({})
    assert parts[0].parameters == CONFIG.embedding_dim * (501 + 10 + 6)  # the table of places is gone
    assert not any("view" in p.name or "pooling" in p.name for p in parts)
    assert total_flops(parts) > 0


def test_count_is_linear_in_lengths_beyond_the_window():
    model = tiny_model()

    def flops(*lengths: int) -> float:
        return total_flops(model.parts({"view": np.array(lengths), "context": np.zeros(len(lengths), np.int64)}))

    step = flops(20) - flops(10)
    assert step > 0
    assert flops(30) - flops(20) == step and flops(110) - flops(10) == 10 * step
    # An example's mean over a batch: only what is made once a batch is shared.
    once = sum(2 * seeds * 8 * 8 for seeds in [4] * 4)  # queries of 2 pools for each of 2 event types
    assert flops(10, 30) == pytest.approx(flops(20) - once / 2)


def test_summary():
    parts = [Part("tables", 1_000, 0), part("head", build(lambda: MLP((2, 3), rngs=nnx.Rngs(0), **RELU)), 30.0)]
    parts.append(Part("rest", 0, 90.4))
    assert summary(parts).splitlines() == [
        "part               parameters  FLOPs/example  share",
        "tables                  1,000              0   0.0%",
        "head                        9             30  24.9%",
        "rest                        0             90  75.1%",
        "total, forward          1,009            120  100.0%",
    ]
