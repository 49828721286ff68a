"""The contract for the Triton kernels: interpreted on a CPU, as they are on a GPU that can run them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from pallas_kernels import seed_attention
from pallas_kernels.activations import ACTIVATIONS
from pallas_kernels.operators.seed_attention import triton as seed_triton
from pallas_kernels.operators.window_attention import triton as window_triton
from pallas_kernels.triton import blocks, target
from tests.pallas_kernels import operators
from tests.pallas_kernels.contract import Contract, Traced
from tests.pallas_kernels.mosaic.accuracy import assert_error_of_16_bits, slow
from tests.pallas_kernels.operators import Layout

pytestmark = pytest.mark.usefixtures("chip")

OPERATORS = (
    operators.gdpa(dim=16, pre_scale=0.3),
    operators.gdpa(keys="jagged", dim=16, pre_scale=0.3),
    operators.gdpa(keys="self", dim=32, pre_scale=0.2),
    operators.window_attention(3, 9, dim=16),
    operators.seed_attention(dim=16),
)
# Narrower than a tile (interpreted: 32 queries, 16 keys), wider with one edge a row off a tile's, and wider than all.
WINDOWS = ((0, 0), (15, 16), (14, 40), (10**6, 10**6))
MORE_WINDOWS = ((1, 0), (0, 2), (40, 14), (0, 10**6))


def check(operator, layout, **options):
    assert_error_of_16_bits(operator, layout, call=lambda *a: operator.call("triton", *a), **options)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
class TestTritonContract(Contract):
    # Several tiles of either side and their tails.
    lengths, changed = (0, 1, 70, 9, 0), 3

    def test_capacity_off_the_alignment(self, operator):
        check(operator, Layout((5, 17), spare=3))


@pytest.mark.parametrize("window", [*WINDOWS, *(pytest.param(x, marks=slow) for x in MORE_WINDOWS)], ids=str)
def test_windows_are_inclusive(window):
    """What lies just outside the window, in a tile or beside it, is not read."""
    if window == (0, 0):  # the output is v itself, and the plain program is exact
        operator, layout = operators.window_attention(0, 0, dim=16), Layout((41, 0, 9))
        operands, _, exact = operators.problem(operator, layout, jnp.bfloat16)
        np.testing.assert_array_equal(operator.call("triton", layout, operands).astype(jnp.float32), exact[0])
        return
    check(operators.window_attention(*window, dim=16), Layout((75, 0, 9)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    check(operators.gdpa(activation, keys="self", dim=16, pre_scale=0.5), Layout((3, 0, 37)))


@slow
@pytest.mark.parametrize("dim", target.DIMS)
@pytest.mark.parametrize("operator", ["dense", "self", "window", "seed"])
def test_widths_of_a_head(dim, operator):
    made = {
        "window": functools.partial(operators.window_attention, 50, 20),
        "seed": operators.seed_attention,
    }.get(operator, functools.partial(operators.gdpa, keys=operator, dense_keys=70, pre_scale=dim**-0.5))(dim=dim)
    check(made, Layout((100, 0, 9)))


@slow
@given(
    lengths=st.lists(st.sampled_from([0, 1, 5, 8, 15, 16, 17, 32, 33, 64, 130]), min_size=1, max_size=5),
    operator=st.sampled_from(["dense", "jagged", "window", "seed"]),
    window=st.sampled_from([(0, 5), (100, 0), (20, 20)]),
    seed=st.integers(0, 3),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lengths(lengths, operator, window, seed):
    """Empty ones, single rows, off the tile, one giant among tiny ones."""
    made = {
        "window": functools.partial(operators.window_attention, *window),
        "seed": operators.seed_attention,
    }.get(operator, functools.partial(operators.gdpa, keys=operator, pre_scale=0.3))(dim=16)
    check(made, Layout(tuple(lengths)), seed=seed)


# --- what the contract does not ask ---


@functools.partial(jax.jit, static_argnums=0)
def results(function, operands, cotangent):
    out, pullback = jax.vjp(function, *operands)
    return (out, *pullback(cotangent))


def test_seeds_of_more_than_a_tile_shared_or_given_for_each_example():
    layout, rng, seeds = Layout((20, 0, 3)), np.random.default_rng(0), 37
    assert seeds > blocks.INTERPRETED.rows
    k, v = (layout.random(rng, jnp.bfloat16, dim=16) for _ in range(2))
    q = jnp.asarray(rng.standard_normal((seeds, operators.HEADS, 16)), jnp.bfloat16)
    cotangent = jnp.asarray(rng.standard_normal((3, *q.shape)), jnp.bfloat16)

    def call(q, k, v):
        return seed_triton.seed_attention(q, k, v, *layout.offsets, scale=0.25)

    shared = results(call, (q, k, v), cotangent)
    own = results(call, (jnp.broadcast_to(q, cotangent.shape), k, v), cotangent)
    for x, y in zip((shared[0], *shared[2:]), (own[0], *own[2:]), strict=True):
        np.testing.assert_array_equal(x, y)
    total = np.asarray(own[1], np.float32).sum(axis=0)
    np.testing.assert_allclose(np.asarray(shared[1], np.float32), total, rtol=0, atol=2e-2 * np.abs(total).max())
    plain = seed_attention(q, k, v, *layout.offsets, scale=0.25, implementation="xla")
    np.testing.assert_allclose(shared[0].astype(jnp.float32), plain.astype(jnp.float32), rtol=0, atol=2e-2)


def test_heads_of_keys_may_be_fewer():
    layout, rng = Layout((20, 0, 3)), np.random.default_rng(0)
    q, k, v, cotangent = (layout.random(rng, jnp.bfloat16, dim=16) for _ in range(4))
    call = functools.partial(window_triton.window_attention, window=(3, 2), scale=0.25)
    k, v = k[:, :1], v[:, :1]
    grouped = results(lambda *a: call(*a, *layout.offsets), (q, k, v), cotangent)
    repeated = results(
        lambda *a: call(*a, *layout.offsets), (q, *(jnp.repeat(x, 2, axis=1) for x in (k, v))), cotangent
    )
    for x, y in zip(grouped[:2], repeated[:2], strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(grouped[2:], repeated[2:], strict=True):
        np.testing.assert_array_equal(x[:, 0], y[:, 0] + y[:, 1])


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="loads are counted in the interpreter")
def test_tiles_outside_the_window_are_not_read(monkeypatch):
    from triton.runtime.interpreter import InterpreterBuilder

    tiles = []
    load = InterpreterBuilder.create_masked_load

    def count(self, pointers, *rest):
        if pointers.data.ndim == 2:
            tiles.append(pointers.data.shape)
        return load(self, pointers, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", count)
    rows, (left, right), size = 320, (10, 5), blocks.INTERPRETED
    operator = operators.window_attention(left, right, dim=16)
    layout = Layout((rows,), spare=0)
    operands = operator.operands(layout, np.random.default_rng(0), jnp.bfloat16)
    operator.call("triton", layout, operands).block_until_ready()
    programs = rows // size.rows * operators.HEADS
    # Keys from 10 before the first query to 5 after the last are 47 rows: three tiles, or four where masks differ.
    streamed = sum(shape[0] == size.tile for shape in tiles) / 2
    assert 2.5 * programs <= streamed <= 4 * programs


@pytest.mark.parametrize("operator", [OPERATORS[3], OPERATORS[4]], ids=lambda operator: operator.name)
def test_under_shard_map_shared_operands_get_summed_gradients(operator):
    layouts = [Layout((5, 0, 33), spare=40), Layout((20, 41, 0), spare=16)]
    rng, dtype = np.random.default_rng(0), jnp.bfloat16
    operands = [operator.operands(layout, rng, dtype) for layout in layouts]
    cotangents = [operator.cotangent(layout, rng, dtype) for layout in layouts]
    shared = [not packed for packed in operator.jagged[:3]]
    operands[1] = tuple(x if same else y for x, y, same in zip(*operands, shared, strict=True))

    def call(operands, splits, lengths, cotangent):
        function = lambda *operands: operator.call("triton", Traced(splits, lengths), operands)  # noqa: E731
        out, pullback = jax.vjp(function, *operands)
        return (out, *pullback(cotangent))

    single = [jax.jit(call)(x, *layout.offsets, y) for x, layout, y in zip(operands, layouts, cotangents, strict=True)]
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    specs = tuple(P() if same else P("data") for same in shared)
    joined = tuple(x if same else jnp.concatenate([x, y]) for x, y, same in zip(*operands, shared, strict=True))
    offsets = (jnp.concatenate(arrays) for arrays in zip(*(x.offsets for x in layouts), strict=True))
    both = jax.shard_map(
        call, mesh=mesh, in_specs=(specs, P("data"), P("data"), P("data")), out_specs=(P("data"), *specs)
    )
    actual = jax.jit(both)(joined, *offsets, jnp.concatenate(cotangents))
    for z, x, y, same in zip(actual, *single, [False, *shared], strict=True):
        z, x, y = (np.asarray(array, np.float32) for array in (z, x, y))
        if same:  # of two roundings to bfloat16
            np.testing.assert_allclose(z, x + y, rtol=0, atol=2**-8 * np.abs(z).max())
        else:
            np.testing.assert_array_equal(z, np.concatenate([x, y]))
