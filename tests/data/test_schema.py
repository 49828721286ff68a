"""`Schema`: its file, its tables, and what it says of a bad file."""

import dataclasses
import json
import re

import pytest

from kunlun_jax.data.schema import Categorical, EventType, Schema, Table
from tests.data.parquet.parquet_sets import SCHEMA


def changed(**fields) -> dict:
    """The fields of a good schema.json, some of them changed; None takes a field away."""
    value = json.loads(SCHEMA.to_json()) | fields
    return {name: item for name, item in value.items() if item is not None}


def test_nulls_are_an_object_and_left_out_where_there_are_none(tmp_path):
    assert "nulls" not in json.loads(SCHEMA.to_json())
    schema = dataclasses.replace(SCHEMA, nulls=(("rated", "masked"),))
    assert json.loads(schema.to_json())["nulls"] == {"rated": "masked"}
    (tmp_path / "schema.json").write_text(schema.to_json())
    assert Schema.read(tmp_path / "schema.json") == schema


FEATURE = {"name": "x", "size": 3}
BAD = {
    "nulls as a list": (changed(nulls=["rated"]), "schema.nulls is ['rated']; it must be an object"),
    "a policy that is no text": (changed(nulls={"rated": True}), "schema.nulls['rated'] is True; it must be a string"),
    "nulls of another column": (
        changed(nulls={"price": "masked"}),
        "schema field 'nulls' has 'masked' for 'price'; it must be 'indicator'",
    ),
    "an unknown policy": (
        changed(nulls={"rated": "mean"}),
        "schema field 'nulls' has 'mean' for 'rated'; it must be 'masked'",
    ),
    "not an object": ([1], r"schema is [1]; it must be an object with the fields of Schema"),
    "unknown field": (
        changed(labels=["y"]),
        "schema has unknown fields ['labels']; known are ['allow', 'categorical', 'dense',",
    ),
    "missing field": (changed(categorical=None), "schema lacks the fields ['categorical']"),
    "no name": (changed(name=None), "schema lacks the fields ['name']"),
    "name of a wrong type": (changed(name=3), "schema.name is 3; it must be a string"),
    "list expected": (changed(dense="price"), "schema.dense is 'price'; it must be a list"),
    "string expected in a list": (changed(keys=["a", 1]), "schema.keys[1] is 1; it must be a string"),
    "features must be a list": (changed(categorical={}), "schema.categorical is {}; it must be a list"),
    "feature of a wrong type": (
        changed(categorical=["user"]),
        "schema.categorical[0] is 'user'; it must be an object with the fields of Categorical",
    ),
    "feature without size": (changed(categorical=[{"name": "x"}]), "schema.categorical[0] lacks the fields ['size']"),
    "size as text": (
        changed(categorical=[FEATURE | {"size": "3"}]),
        "schema.categorical[0].size is '3'; it must be a whole number",
    ),
    "size as a fraction": (changed(categorical=[FEATURE | {"size": 3.0}]), "size is 3.0; it must be a whole number"),
    "size as a truth value": (
        changed(categorical=[FEATURE | {"size": True}]),
        "size is True; it must be a whole number",
    ),
    "size zero": (changed(categorical=[FEATURE | {"size": 0}]), "feature 'x' has size 0; it must be at least 1"),
    "overflow": (
        changed(categorical=[FEATURE | {"overflow": "drop"}]),
        "schema.categorical[0].overflow is 'drop'; it must be one of ['oov', 'hash']",
    ),
    "event field of a wrong type": (
        changed(events=[{"name": "e", "categorical": [FEATURE | {"table": 1}]}]),
        "schema.events[0].categorical[0].table is 1; it must be a string",
    ),
    "event without fields": (changed(events=[{"name": "e"}]), "schema.events[0] lacks the fields ['categorical']"),
    "column twice": (changed(dense=["user"]), "column names must be unique; ['user'] appear more than once"),
    "a task that is a feature": (changed(tasks=["price"]), "column names must be unique; ['price']"),
    "event type twice": (
        changed(events=[{"name": "e", "categorical": []}] * 2),
        "event type names must be unique; ['e'] appear more than once",
    ),
    "event field twice": (
        changed(events=[{"name": "e", "categorical": [FEATURE], "dense": ["x"]}]),
        "field of event type 'e' names must be unique; ['x']",
    ),
    "nulls of no column": (
        changed(nulls={"item": "own_row", "like.price": "indicator"}),
        "schema field 'nulls' names 'like.price'; it may name [",
    ),
    "no minimum count": (
        changed(categorical=[FEATURE | {"min_count": 0}]),
        "feature 'x' has min_count 0; it must be at least 1",
    ),
    "a vocabulary that is not said": (
        changed(categorical=[FEATURE | {"vocabulary": "yes"}]),
        "schema.categorical[0].vocabulary is 'yes'; it must be true or false",
    ),
    "unknown unit": (
        changed(time_unit="minutes"),
        "schema.time_unit is 'minutes'; it must be one of ['s', 'ms', 'us', 'ns']",
    ),
    "unknown allowance": (
        changed(allow=["early_splits", "anything"]),
        "schema.allow[1] is 'anything'; it must be one of ['relative_times', 'early_splits', 'events_apart']",
    ),
    "no task": (changed(tasks=[]), "schema field 'tasks' is empty; name at least one label column"),
    "group": (
        changed(group="item"),
        "schema field 'group' is 'item'; it must be one of 'keys' ['user_name', 'request']",
    ),
}


def test_file_round_trip(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(SCHEMA.to_json())
    assert Schema.read(path) == SCHEMA


def test_optional_fields_may_be_missing(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"name": "bare", "categorical": [FEATURE]}))
    assert Schema.read(path) == Schema("bare", (Categorical("x", 3),), tasks=("label",))


@pytest.mark.parametrize("case", BAD)
def test_bad_files(case, tmp_path):
    value, message = BAD[case]
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=re.escape(f"{path}: ") + ".*" + re.escape(message)):
        Schema.read(path)


def test_text_that_is_no_json(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text("{'name': 1}")
    with pytest.raises(ValueError, match=re.escape(f"{path}: Expecting property name")):
        Schema.read(path)


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"schema\.json: no such file; a data set needs a schema\.json"):
        Schema.read(tmp_path / "schema.json")


def test_tables_are_shared_by_name():
    assert SCHEMA.tables == {
        "user": Table("user", 6, 5, "oov"),
        "item": Table("item", 7, 7, "hash"),
        "tags": Table("tags", 5, 4, "oov"),
        "words": Table("words", 6, 6, "hash"),
        "place": Table("place", 4, 3, "oov"),
    }
    assert list(SCHEMA.tables) == ["user", "item", "tags", "words", "place"]  # in order of first use
    other = Schema("s", (Categorical("a", 4, table="ids"), Categorical("b", 4, table="ids")))
    assert list(other.tables) == ["ids"]


@pytest.mark.parametrize("change", [{"size": 8}, {"overflow": "oov"}])
def test_features_of_one_table_must_agree(change):
    click = SCHEMA.events[0]
    item = dataclasses.replace(click.categorical[0], **change)
    with pytest.raises(ValueError, match=r"feature 'item' wants Table\(.*, but an earlier one wants Table\(.*size=7"):
        dataclasses.replace(SCHEMA, events=(dataclasses.replace(click, categorical=(item,)),))


def test_event_by_name():
    assert SCHEMA.event("like") == EventType("like", (Categorical("item", 7, overflow="hash"),))
    with pytest.raises(KeyError, match=r"no event type 'buy' in schema 'toy'; it has \['click', 'like'\]"):
        SCHEMA.event("buy")
