"""The table of names is complete, files come back as they were, and what does not fit is refused by name."""

import dataclasses
import pickle

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from kunlun_jax.models.kunlun import Kunlun
from kunlun_jax.nn.embedding import init_tables
from kunlun_jax.torch_reference import weights
from kunlun_jax.torch_reference.model import Kunlun as Twin
from kunlun_jax.torch_reference.registry import make_twin
from tests.examples import SCHEMA, tiny_tables
from tests.models.systems import TINY
from tests.models.tiny import CONFIG, tiny_model

CHOICES = {
    "wide": {"wide": True},
    "defaults": {},
    "plain FFN, seeds alone": {"ffn_kind": "plain", "ffn_layer_scale": 0.1, "pooling": "seeds"},
    "gate, PMA, two-layer MLP": {"summary_gate": True, "pooling": "pma", "event_input": "mlp"},
    "everything in each layer": {"pattern": ("pool+ffn+attention",), "layers": 2, "experts": 3},
    "no projection, no hidden layers": {"embedding_dim": CONFIG.dim, "fm_hidden": (), "head_hidden": ()},
    "no events": {"skip_events": ("*",)},
}


def parameters(**changes):
    """Parameters and tables of a tiny JAX model."""
    model = tiny_model(**changes)
    return nnx.state(model, nnx.Param), tiny_tables(model.schema, dim=model.embedding_dim)


def twin(**changes) -> Twin:
    return Twin(SCHEMA, dataclasses.replace(CONFIG, **changes))


@pytest.mark.parametrize("choice", CHOICES)
def test_names_are_complete_both_ways(choice):
    params, tables = parameters(**CHOICES[choice])
    ours = {name: array.shape for name, array in weights.from_nnx(params, tables).items()}
    assert len(ours) == len(jax.tree.leaves((params, tables)))  # no two leaves have one name
    assert ours == {name: tuple(tensor.shape) for name, tensor in twin(**CHOICES[choice]).state_dict().items()}


def test_every_line_of_the_table_is_used():
    twins = [twin(**changes) for changes in CHOICES.values()]
    twins += [make_twin(SCHEMA, TINY[name]) for name in ("wukong", "interformer", "hstu")]
    names = set().union(*(each.state_dict() for each in twins))
    used = {old for old in weights.LEAVES for name in names if weights.LEAVES[old] == _pattern(name)}
    assert used == set(weights.LEAVES)


def _pattern(name: str) -> str:
    """A PyTorch name with its numbers and own names taken out."""
    words = ["*" if word.isdigit() else word for word in name.split(".")]
    words = ["{event}" if word.startswith("event_") and i else word for i, word in enumerate(words)]
    return ".".join("{table}" if word.startswith("table_") else word for word in words)


def test_a_leaf_without_a_name():
    with pytest.raises(KeyError, match=r"parameter layers\.0\.new\.kernel has no name in PyTorch; add it to weights"):
        weights.torch_name(("layers", "0", "new", "kernel"))


def test_kernels_are_transposed_and_nothing_else():
    params, tables = parameters()
    arrays = weights.from_nnx(params, tables)
    kernel = params["context"]["dense"]["kernel"][...]
    np.testing.assert_array_equal(arrays["context.dense.weight"], np.asarray(kernel).T)
    np.testing.assert_array_equal(arrays["context.project"], params["context"]["project"][...])
    np.testing.assert_array_equal(arrays["tables.table_item"], tables["item"])


@pytest.mark.parametrize("changes", [{}, {"pooling": "pma"}])
def test_round_trip_through_files(tmp_path, changes):
    params, tables = parameters(**changes)
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    weights.write(there, weights.from_nnx(params, tables))
    model = twin(**changes)
    weights.into_torch(weights.read(there), model, source=str(there))
    weights.write(back, weights.from_torch(model))
    blank = jax.eval_shape(lambda: (params, tables))
    new_params, new_tables = weights.into_nnx(weights.read(back), *blank, source=str(back))
    jax.tree.map(np.testing.assert_array_equal, (new_params, new_tables), (params, tables))
    assert jax.tree.structure(new_params) == jax.tree.structure(params)


def test_float64_comes_back_as_float64(tmp_path):
    model = twin().double()
    weights.write(tmp_path / "f", weights.from_torch(model))
    other = twin().double()
    weights.into_torch(weights.read(tmp_path / "f"), other)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert b.dtype == torch.float64 and torch.equal(a, b)


FAULTS = {
    "missing": (lambda a: a.pop("head.layers.1.bias"), r"  head\.layers\.1\.bias \[2\] is missing$"),
    "extra": (lambda a: a.update(more=np.zeros(3, np.float32)), r"  more \[3\] is not of this model$"),
    "misshaped": (
        lambda a: a.update({"context.dense.weight": a["context.dense.weight"].T.copy()}),
        r"  context\.dense\.weight has shape \[4, 8\]; it must be \[8, 4\]$",
    ),
    "of another dtype": (
        lambda a: a.update({"tables.table_user": a["tables.table_user"].astype(np.float64)}),
        r"  tables\.table_user has dtype float64; it must be float32$",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_refused_by_name(tmp_path, fault):
    spoil, message = FAULTS[fault]
    params, tables = parameters()
    arrays = weights.from_nnx(params, tables)
    spoil(arrays)
    path = tmp_path / "weights.safetensors"
    weights.write(path, arrays)
    model = twin()
    before = weights.from_torch(model)
    with pytest.raises(ValueError, match=r"weights\.safetensors does not fit the model:\n" + message):
        weights.into_torch(weights.read(path), model, source=str(path))
    jax.tree.map(np.testing.assert_array_equal, weights.from_torch(model), before)
    with pytest.raises(ValueError, match=message):
        weights.into_nnx(weights.read(path), params, tables)


def test_all_faults_are_listed():
    params, tables = parameters()
    arrays = weights.from_nnx(params, tables)
    for spoil, _ in FAULTS.values():
        spoil(arrays)
    with pytest.raises(ValueError, match="does not fit") as error:
        weights.into_torch(arrays, twin())
    assert len(str(error.value).splitlines()) == 1 + len(FAULTS)


def test_a_pickle_is_not_read(tmp_path):
    path = tmp_path / "weights.pt"

    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was loaded",))

    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"weights\.pt is not a safetensors file"):
        weights.read(path)
    torch.save(twin().state_dict(), path)
    with pytest.raises(ValueError, match="no other format is read"):
        weights.read(path)


def test_event_types_and_tables_may_be_called_as_methods_of_modules_are():
    assert hasattr(torch.nn.Module, "type") and hasattr(torch.nn.Module, "float")
    event = dataclasses.replace(SCHEMA.events[0], name="type")
    user = dataclasses.replace(SCHEMA.categorical[0], name="float")
    schema = dataclasses.replace(SCHEMA, events=(event,), categorical=(user,))
    config = dataclasses.replace(CONFIG, layers=1)
    model = nnx.eval_shape(lambda: Kunlun(schema, config, base_rate=(0.1, 0.1), rngs=nnx.Rngs(0)))
    tables = jax.eval_shape(lambda: init_tables(schema, config.embedding_dim, scale=1.0, key=jax.random.key(0)))
    like = nnx.state(model, nnx.Param), tables
    new = weights.into_nnx(weights.from_torch(Twin(schema, config)), *like)
    assert "type" in new[0]["event_input"] and "float" in new[1]
