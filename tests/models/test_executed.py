"""Executed work against useful work where all rows are valid, XLA's count, and tiles that are counted by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import pallas as pl

from kunlun_jax.executed import NotCounted, Program
from kunlun_jax.flops import TRAINING_FACTOR, total_flops
from kunlun_jax.models.config import EventConfig
from kunlun_jax.nn.embedding import lookup
from pallas_kernels import gdpa, seed_attention, window_attention
from pallas_kernels.xla import tiles
from tests.examples import SCHEMA, random_batch, splits_of, tiny_tables
from tests.models.tiny import tiny_model

ELEMENTWISE = 1.06
"""XLA's count over ours, at most, at the widths of these tests: what biases, norms, softmax and updates add."""


def program(function, *arguments, known=()) -> tuple[Program, float]:
    """The program of a function and XLA's count of it; `known` are the numbers of the arguments that are told."""
    traced = jax.jit(function).trace(*arguments)
    told = [number in known for number, argument in enumerate(arguments) for _ in jax.tree.leaves(argument)]
    cost = traced.lower().cost_analysis()
    assert isinstance(cost, dict)
    return Program(traced.jaxpr, told), cost["flops"]


EVENT = EventConfig(dim=128, heads=1, tokens=8, seeds=16, layers=2, window=64, ffn_width=32, kron_rank=2)
WIDE = {"dim": 128, "embedding_dim": 64, "event": EVENT, "activation": "relu", "ffn_activation": "relu"}
WIDE |= {"fm_hidden": (128,), "head_hidden": (64,), "pattern": ("pool+ffn+attention",), "implementation": "reference"}


@functools.cache
def of_a_gradient(lengths: int, **changes) -> tuple[int, float, float]:
    """Executed, by XLA, and useful FLOPs of forward and backward pass of one example in a batch of 64 rows a type."""
    model, batch = tiny_model(**WIDE | changes), random_batch((lengths,), (lengths,), size=1)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    embedded = jax.eval_shape(lambda b: lookup(SCHEMA, b, tiny_tables(dim=64)), batch)

    def loss(params, embedded, batch):
        return nnx.merge(graph, params, rest)(batch, embedded).sum()

    found, by_xla = program(jax.grad(loss, argnums=(0, 1)), params, embedded, batch)
    parts = model.parts({"view": np.array([lengths]), "context": np.array([lengths])})
    return found.work([]).flops, by_xla, TRAINING_FACTOR * total_flops(parts)


@pytest.mark.parametrize("changes", [{}, {"ffn_kind": "plain", "pooling": "seeds"}], ids=["kunlun", "ablations"])
def test_where_every_row_is_valid_all_that_runs_is_useful(changes):
    """One example that fills the batch, windows as long as it, and no loops: three forward passes, and XLA's count."""
    executed, by_xla, useful = of_a_gradient(64, **changes)
    # Less by the gradients of dense features and ages, which nothing asks for.
    assert executed == pytest.approx(useful, rel=1e-4) and executed <= useful
    assert 1 <= by_xla / executed < ELEMENTWISE


def test_rows_without_an_event_are_executed_and_not_useful():
    full, short = of_a_gradient(64), of_a_gradient(16)
    assert short[0] == full[0] and short[1] == full[1] and short[2] < 0.6 * short[0]


LENGTHS = (0, 3, 40, 17, 8, 70)
HEADS, DIM, ROWS = 2, 32, 256


def tiled(lengths, size: int) -> list[int]:
    """Tiles of each example."""
    return [-(-length // size) for length in lengths]


def window_pairs(lengths, size: int, window: tuple[int, int]) -> int:
    """Pairs of tiles of one example in which some query may read some key."""
    left, right = window
    count = 0
    for length, number in zip(lengths, tiled(lengths, size), strict=True):
        rows = [range(i * size, min((i + 1) * size, length)) for i in range(number)]
        count += sum(any(-left <= j - i <= right for i in queries for j in keys) for queries in rows for keys in rows)
    return count


def operands(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


KEYS, SEEDS, WINDOW = 16, 8, (5, 20)
ROW = operands(ROWS, HEADS, DIM)
OPERATORS = {
    # The operator, its operands, from the rows of a tile to the tiles or pairs of tiles and the scores in each, and the
    # FLOPs outside of loops.
    "gdpa": (
        lambda q, k, v, s, n: gdpa(q, k, v, s, n, activation="relu", implementation="xla"),
        (ROW, *[operands(len(LENGTHS), KEYS, HEADS, DIM)] * 2),
        lambda size: (sum(tiled(LENGTHS, size)), size * KEYS),
        0,
    ),
    "seed attention": (
        lambda q, k, v, s, n: seed_attention(q, k, v, s, n, implementation="xla"),
        (operands(SEEDS, HEADS, DIM), ROW, ROW),
        lambda size: (sum(tiled(LENGTHS, size)), size * SEEDS),
        # The cotangent times the output, channel by channel, for the gradient of the softmax.
        2 * len(LENGTHS) * SEEDS * HEADS * DIM,
    ),
    "window attention": (
        lambda q, k, v, s, n: window_attention(q, k, v, s, n, window=WINDOW, implementation="xla"),
        (ROW, ROW, ROW),
        lambda size: (window_pairs(LENGTHS, size, WINDOW), size * size),
        0,
    ),
}


@pytest.mark.parametrize("chunk", [2, 5])
@pytest.mark.parametrize("name", OPERATORS)
def test_loops_over_tiles_are_counted_by_their_trips(name, chunk, monkeypatch):
    """Two products forward and five backward of all tiles of all steps, the last step's empty ones included."""
    monkeypatch.setattr(tiles, "chunk_tiles", lambda scores: chunk)
    operator, arrays, by_hand, outside = OPERATORS[name]
    offsets = (
        jnp.asarray(splits_of([-(-n // 8) * 8 for n in LENGTHS]), jnp.int32),
        jnp.asarray(LENGTHS, jnp.int32),
    )

    def loss(q, k, v, splits, lengths):
        return jnp.square(operator(q, k, v, splits, lengths)).sum()

    size = tiles.tile_rows(ROWS, len(LENGTHS))
    number, scores = by_hand(size)
    trips = -(-number // chunk)
    assert trips > 1
    found, by_xla = program(jax.value_and_grad(loss, argnums=(0, 1, 2)), *arrays, *offsets, known=(3, 4))
    each = 2 * HEADS * DIM * scores * chunk
    assert found.work(offsets).flops == 7 * each * trips + outside
    # XLA counts each body once, and bodies are the same for any number of trips.
    assert 7 * each + outside < by_xla
    # No events, no trips.
    assert found.work([jnp.zeros_like(offsets[0]), jnp.zeros_like(offsets[1])]).flops == outside


def test_dead_products_are_left_out_and_those_of_a_scan_are_all_counted():
    x = operands(4, 4)

    def function(x):
        _ = x @ x @ x
        return jax.lax.scan(lambda carry, _: (carry @ x, None), x, length=5)[0]

    found, _ = program(function, x)
    assert found.work([]).flops == 5 * 2 * 4**3


def test_bytes_of_products_and_of_rows_that_are_gathered_and_added_to():
    """By hand: three arrays of a product; rows of a table read and written, and read, added to and written."""
    table, ids, left, right = operands(1000, 8), jnp.arange(5, dtype=jnp.int32), operands(5, 8), operands(8, 16)
    products, rows, indices = 4 * (5 * 8 + 8 * 16 + 5 * 16), 4 * 5 * 8, 4 * 5

    def gathered(table, ids, right):
        return table[ids] @ right

    found, _ = program(gathered, table, ids, right)
    assert found.work([]).bytes == products + 2 * rows + indices

    def added(table, ids, left):
        return table.at[ids].add(jnp.tanh(left) + 1)

    found, _ = program(added, table, ids, left)
    assert found.work([]).bytes == 3 * rows + indices
    cost = jax.jit(added, donate_argnums=0).lower(table, ids, left).compile().cost_analysis()
    assert isinstance(cost, dict) and cost["bytes accessed"] > 2 * table.nbytes

    found, _ = program(lambda table, ids, left: table.at[ids].set(left), table, ids, left)
    assert found.work([]).bytes == 2 * rows + indices
    found, _ = program(lambda table, place: jax.lax.dynamic_slice(table, (place, 0), (3, 8)), table, jnp.int32(7))
    assert found.work([]).bytes == 2 * (4 * 3 * 8) + 2 * 4


def test_bytes_of_a_loop_follow_its_trips():
    def function(x, steps):
        return jax.lax.fori_loop(0, steps, lambda i, y: y @ x, x).sum()

    x, each = operands(4, 4).astype(jnp.bfloat16), 3 * 2 * 16
    found, _ = program(function, x, jnp.int32(3), known=(1,))
    assert [found.work([jnp.int32(n)]).bytes for n in (0, 3, 100)] == [0, 3 * each, 100 * each]


def test_a_trip_count_that_is_not_told_is_refused():
    def function(x, steps):
        return jax.lax.fori_loop(0, steps, lambda i, y: y @ x, x)

    x, steps = operands(4, 4), jnp.int32(3)
    found, _ = program(function, x, steps, known=(1,))
    assert [found.work([jnp.int32(n)]).flops for n in (0, 3, 100)] == [0, 3 * 128, 100 * 128]
    with pytest.raises(NotCounted, match="the trips of a loop depend on more than the offsets of the batch"):
        program(function, x, steps)


def test_a_loop_that_does_not_count_is_refused():
    def function(x, steps):
        return jax.lax.while_loop(lambda c: c[1] < steps, lambda c: (c[0] @ x, 2 * c[1] + 1), (x, 0))[0]

    with pytest.raises(NotCounted, match="a while loop that is no count from one number up to another"):
        program(function, operands(4, 4), jnp.int32(3), known=(1,))


def test_a_fused_kernel_is_refused():
    def kernel(x, out):
        out[...] = x[...] @ x[...]

    def function(x):
        return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x)

    with pytest.raises(NotCounted, match="the program calls pallas_call, whose work its trace does not tell"):
        program(function, operands(8, 8))
