"""Dense parameters in parts: which are cut where, what travels for them, and experts that devices share."""

import functools
import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from kunlun_jax.nn import table_rows
from kunlun_jax.nn.interaction import GlobalInteraction, check_shared
from kunlun_jax.parallel import AXES, MeshConfig, make_mesh
from kunlun_jax.training import partition
from kunlun_jax.training.placement import specs
from tests.training.collectives import collectives, size
from tests.training.mesh_steps import FLAGS, QUICK, SMALL, cut_small_things, prepared

P = PartitionSpec


@pytest.fixture(autouse=True)
def small_things(monkeypatch):
    cut_small_things(monkeypatch.setattr)


def state(**shapes: tuple[int, ...]) -> nnx.State:
    """Parameters of these shapes; their names are paths with ``__`` between the parts."""
    paths = {tuple(int(x) if x.isdigit() else x for x in name.split("__")): shape for name, shape in shapes.items()}
    return nnx.from_flat_state([(path, nnx.Param(jnp.zeros(shape))) for path, shape in paths.items()])


@pytest.mark.parametrize(
    ("mesh", "shape", "of_layer", "of_expert"),
    [
        (MeshConfig(8), (16, 8), P(), P()),
        (MeshConfig(2, fsdp=4), (16, 8), P("fsdp"), P("fsdp")),
        (MeshConfig(2, fsdp=4), (8, 16), P(None, "fsdp"), P(None, "fsdp")),
        (MeshConfig(2, fsdp=4), (8, 8), P("fsdp"), P("fsdp")),  # the first of equals
        (MeshConfig(2, fsdp=4), (19, 8), P(None, "fsdp"), P(None, "fsdp")),  # 4 does not divide 19
        (MeshConfig(2, fsdp=4), (3, 12, 8), P(None, "fsdp"), P(None, "fsdp")),
        (MeshConfig(2, fsdp=4), (6, 7), P(), P()),  # none can be cut
        (MeshConfig(2, fsdp=4), (12,), P(), P()),  # too small
        (MeshConfig(2, fsdp=4), (16,), P("fsdp"), P("fsdp")),
        (MeshConfig(4, experts=2), (6, 8), P(), P(None, "experts")),
        (MeshConfig(2, fsdp=2, experts=2), (6, 8), P(None, "fsdp"), P(None, ("fsdp", "experts"))),
        (MeshConfig(2, fsdp=2, experts=2), (6, 6), P("fsdp"), P()),
    ],
)
def test_which_dimension_is_cut(mesh, shape, of_layer, of_expert):
    made = make_mesh(mesh)
    assert made is not None
    found = partition.specs(state(kernel=shape, experts__1__kernel=shape), made)
    assert (found["kernel"].get_value(), found["experts"][1]["kernel"].get_value()) == (of_layer, of_expert)


def test_what_an_optimizer_keeps_lies_as_its_parameters():
    trainer = prepared(MeshConfig(2, fsdp=4), model=SMALL).trainer
    made = trainer.abstract_state()
    of = specs(trainer.schema, made, trainer.mesh)
    cut = [spec for spec in jax.tree.leaves(of.params) if spec != P()]
    assert len(cut) > 5
    kept = [spec for spec in jax.tree.leaves(of.optimizer) if spec != P()]
    assert Counter(kept) == Counter(cut + cut)  # both moments
    adam = next(x for x in jax.tree.leaves(made.optimizer, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(x, "mu"))
    for param, *moments in zip(*map(jax.tree.leaves, (made.params, adam.mu, adam.nu)), strict=True):
        assert all(moment.sharding == param.sharding for moment in moments)


def over(mesh: MeshConfig, function, args: tuple[Any, ...], places: tuple[Any, ...], out: Any):
    """``function`` compiled for arguments that lie as `places` say; they are put there."""
    made = make_mesh(mesh)
    assert made is not None
    put = jax.tree.map(lambda x, place: jax.device_put(x, NamedSharding(made, place)), args, places)
    spread = jax.shard_map(function, mesh=made, in_specs=places, out_specs=out, check_vma=False)
    return jax.jit(spread).lower(*put).compile(QUICK), put


def test_the_norm_of_what_lies_in_parts():
    rng = np.random.default_rng(0)
    tree = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), state(a=(16, 4), b=(3,), c=(5, 8))
    )
    mesh = MeshConfig(2, fsdp=4)
    places = partition.specs(tree, make_mesh(mesh))
    run, put = over(mesh, lambda tree: partition.norm(tree, places), (tree,), (places,), P())
    squares = sum(np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(tree))
    np.testing.assert_allclose(run(*put), np.sqrt(squares), rtol=1e-6)


def test_what_travels_of_dense_parameters_and_tables():
    """In the compiled step, per device: parts of a parameter are gathered once and their gradients scattered once; what
    is whole and what is left of a sum is added; of large tables rows and ids alone travel.
    """
    devices = MeshConfig(2, fsdp=4)
    run = prepared(devices, *FLAGS, model=SMALL)  # the step that test_mesh.py compiles, too
    with run.loader("train") as loader:
        batch = run.trainer.put(next(loader)[0])
    made = run.trainer.init()
    found = collectives(run.trainer.compile_step(made, batch, QUICK).as_text())
    cut = [leaf for leaf in jax.tree.leaves(made.params) if leaf.sharding.spec != P()]
    whole = [leaf.shape for leaf in jax.tree.leaves(made.params) if leaf.sharding.spec == P()]
    parts = [leaf.addressable_shards[0].data.shape for leaf in cut]
    assert Counter(found.pop("all-gather")) == Counter(("f32", leaf.shape) for leaf in cut)
    scattered = found.pop("reduce-scatter")
    assert Counter(scattered) == Counter(("f32", part) for part in parts)
    assert devices.fsdp * size(scattered) == sum(leaf.nbytes for leaf in cut)

    large = {name for name, table in run.trainer.schema.tables.items() if table_rows.is_dealt(table.rows)}
    small = [table.shape for name, table in made.tables.items() if name not in large]
    added = [array for array in found.pop("all-reduce") if array[0] == "f32" and np.prod(array[1]) > 1]
    expected = [shape for shape in [*parts, *whole, *small] if np.prod(shape) > 1]
    assert large and Counter(added) == Counter(("f32", shape) for shape in expected)

    # A compiled all-to-all has a result for each device: ids there and back, rows and gradients.
    sent = found.pop("all-to-all")
    ids = {shape for dtype, shape in sent if dtype == "s32"}
    assert {shape for dtype, shape in sent if dtype == "f32"} == {(*room, SMALL.embedding_dim) for room in ids}
    assert len(sent) == devices.devices * 4 * len(large)
    assert found == {}


EXPERTS, TOKENS, DIM, BATCH = 4, 8, 8, 16


def mixture(experts: int = EXPERTS, tokens: int = TOKENS) -> GlobalInteraction:
    sizes = {"fm_tokens": 2, "linear_tokens": 2, "rank": 4, "hidden": (8,), "activation": "gelu", "dtype": jnp.float32}
    return GlobalInteraction(tokens, DIM, experts=experts, rngs=nnx.Rngs(0), **sizes)


@functools.cache
def split() -> tuple[Any, Any]:
    """Parameters that differ from expert to expert in every leaf, norms and biases, too."""
    graph, params = nnx.split(mixture())
    rng = np.random.default_rng(0)
    return graph, jax.tree.map(lambda x: x + jnp.asarray(rng.normal(size=x.shape) / 8, x.dtype), params)


def loss(graph, params, x, target):
    return ((nnx.merge(graph, params)(x) - target) ** 2).sum()


@pytest.mark.parametrize("mesh", [MeshConfig(2, fsdp=2, experts=2), MeshConfig(2, experts=4)])
def test_devices_that_share_experts_compute_what_one_does(mesh):
    graph, params = split()
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(BATCH, TOKENS, DIM)), jnp.float32)
    target = jnp.asarray(rng.normal(size=(BATCH, EXPERTS * 4, DIM)), jnp.float32)
    expected = jax.jit(jax.grad(functools.partial(loss, graph), argnums=(0, 1)))(params, x, target)
    places = partition.specs(params, make_mesh(mesh))

    def of_device(params, x, target):
        def own(params, x):
            return loss(graph, partition.gather(params, places), x, target)

        gradient, of_x = jax.grad(own, argnums=(0, 1))(params, x)
        return partition.add(gradient, places), of_x

    batch = P(AXES)
    run, put = over(mesh, of_device, (params, x, target), (places, batch, batch), (places, batch))
    for there, here in zip(*map(jax.tree.leaves, (expected, run(*put))), strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-4)
        assert np.abs(there).max() > 1e-2

    # Parameters of own experts, their tokens and outputs by all-to-all; no other expert is put together.
    found, devices = collectives(run.as_text()), mesh.experts
    sent = [shape for _, shape in found["all-to-all"]]
    own = EXPERTS // devices, BATCH // mesh.devices
    assert {(*own, TOKENS // EXPERTS, DIM), (*own, 4, DIM)} <= set(sent)
    cut = sum(leaf.size for leaf, place in zip(*map(jax.tree.leaves, (params, places)), strict=True) if place != P())
    tokens = 2 * (BATCH // mesh.devices) * (TOKENS + EXPERTS * 4) * DIM
    assert size(found["all-to-all"]) == 4 * (2 * cut // (mesh.fsdp * devices) + tokens)
    assert size(found["all-gather"]) == (4 * cut // devices if mesh.fsdp > 1 else 0)
    assert set(found) <= {"all-to-all", "all-gather", "all-reduce", "reduce-scatter"}


class Other(nnx.Module):
    """Has experts of its own."""

    def __init__(self):
        self.experts = nnx.List([nnx.Linear(2, 2, rngs=nnx.Rngs(0)) for _ in range(2)])


@pytest.mark.parametrize(
    ("model", "devices", "message"),
    [
        (lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(0)), 2, "mesh.experts is 2, and this model has no GlobalInteraction"),
        (mixture, 8, "mesh.experts is 8; it must divide model.experts, which is 4"),
        (
            lambda: nnx.Dict(first=mixture(4, 10)),
            2,
            "mesh.experts is 2, and the 4 experts of first are unlike, for they share 10 tokens; those must be a "
            "multiple of model.experts 4",
        ),
        (Other, 2, "mesh.experts is 2, and .experts belongs to a Other, which does not share them"),
    ],
)
def test_experts_that_cannot_be_shared_are_refused(model, devices, message):
    model = nnx.eval_shape(model)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_shared(model, devices)
    check_shared(model, 1)
