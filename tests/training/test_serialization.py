"""Configs to JSON and back: every preset, and fields that a version does not know."""

import dataclasses
import json
from pathlib import Path

import pytest

from kunlun_jax.models.config import KunlunConfig
from kunlun_jax.models.dlrm import DLRMConfig
from kunlun_jax.serialization import from_json, to_json
from kunlun_jax.training.config import TrainConfig
from tests.models.systems import all_configs


@dataclasses.dataclass(frozen=True)
class Inner:
    pair: tuple[int, str]
    many: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    named: dict[str, Inner]
    path: Path
    nothing: Path | None
    something: Path | None
    count: int | None
    nested: tuple[tuple[str, int], ...]


OUTER = Outer(
    Inner((1, "a"), (0.5,)),
    {"x": Inner((2, "b"), ())},
    Path("here/file"),
    None,
    Path("there"),
    3,
    (("click", 5), ("like", 6)),
)


def through_text(value):
    return json.loads(json.dumps(to_json(value)))


def test_every_kind_of_field_comes_back_equal_and_of_its_type():
    again = from_json(Outer, through_text(OUTER))
    assert again == OUTER
    assert isinstance(again.path, Path) and isinstance(again.something, Path) and isinstance(again.nested[0], tuple)


def test_a_config_of_each_model_comes_back_of_its_class():
    for kind in all_configs():
        config = TrainConfig(model=kind())
        value = through_text(config)
        assert value["model"]["kind"] == f"{kind.__module__}.{kind.__name__}"
        again = from_json(TrainConfig, value)
        assert again == config and type(again.model) is kind


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("kunlun_jax.models.dln.DLNConfig", "there is no such class"),
        ("kunlun_jax.models.dlrm.DLNConfig", "there is no such class"),
        ("DLRMConfig", "there is no such class"),
        ("kunlun_jax.models.dlrm.DLRM", "it must name a dataclass derived from ModelConfig"),
        ("kunlun_jax.nn.rotary.RoteConfig", "it must name a dataclass derived from ModelConfig"),
    ],
)
def test_a_class_that_is_no_model_config_is_refused(kind, message):
    value = through_text(TrainConfig(model=DLRMConfig()))
    value["model"]["kind"] = kind
    with pytest.raises(ValueError, match=rf"config\.model\.kind is '{kind}'.*{message}"):
        from_json(TrainConfig, value)


def test_a_model_without_its_class_is_refused():
    value = through_text(TrainConfig(model=DLRMConfig()))
    del value["model"]["kind"]
    with pytest.raises(ValueError, match=r"config\.model has no 'kind'"):
        from_json(TrainConfig, value)


def test_a_field_that_another_system_has_is_refused():
    value = through_text(TrainConfig(model=DLRMConfig()))
    value["model"]["unit_hidden"] = [3]
    with pytest.raises(ValueError, match=r"config\.model has the fields .*'unit_hidden'.*expects .*'bottom_hidden'"):
        from_json(TrainConfig, value)


def test_an_unknown_field_is_named():
    value = through_text(TrainConfig(model=KunlunConfig()))
    value["model"]["rote"]["frequency"] = 1
    with pytest.raises(ValueError, match=r"config\.model\.rote has the fields .*'frequency'.*expects .*'t_scale'"):
        from_json(TrainConfig, value)


def test_a_missing_field_is_named():
    value = through_text(OUTER)
    del value["named"]["x"]["pair"]
    with pytest.raises(ValueError, match=r"outer\.named\.x has the fields \['many'\]; .* expects \['many', 'pair'\]"):
        from_json(Outer, value, "outer")


def test_a_bad_value_is_refused_by_the_config_itself():
    value = through_text(TrainConfig(model=KunlunConfig()))
    value["model"]["dropout"] = 1.5
    with pytest.raises(ValueError, match=r"dropout is 1\.5; it must lie in \[0, 1\)"):
        from_json(TrainConfig, value)


def test_what_is_no_object_is_named():
    value = through_text(OUTER) | {"inner": [1, 2]}
    with pytest.raises(ValueError, match=r"outer\.inner is \[1, 2\]; it must be an object with the fields of Inner"):
        from_json(Outer, value, "outer")
