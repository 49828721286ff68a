"""Vocabularies and means are those of the training rows, and values are what they were, whatever their type."""

import collections
import dataclasses
import decimal
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from kunlun_jax.data.dataset import dense_moments
from kunlun_jax.data.pack import hashed, map_ids
from kunlun_jax.data.parquet.learned import read_learned
from kunlun_jax.data.parquet.mean import UsualMean
from kunlun_jax.data.parquet.report import DataError
from kunlun_jax.data.parquet.source import open_dataset
from kunlun_jax.data.parquet.validate import summary
from kunlun_jax.data.parquet.vocabulary import Counter, Vocabulary
from kunlun_jax.data.schema import NULL_ID, Categorical, EventType, Schema, Table
from tests.data.parquet.parquet_sets import Tables

D = decimal.Decimal
ITEM = Categorical("item", 3, table="item", vocabulary=True, min_count=2)
SCHEMA = Schema(
    "words",
    (ITEM, Categorical("user", 9, vocabulary=True, overflow="hash")),
    multi_valued=(Categorical("tags", 4, vocabulary=True),),
    dense=("price", "age"),
    events=(EventType("click", (ITEM,), ("amount",)),),
    allow=("relative_times", "early_splits"),
    nulls=(
        ("item", "own_row"),
        ("click.item", "own_row"),
        ("tags", "dropped"),
        ("price", "indicator"),
        ("click.amount", "indicator"),
    ),
)
TRAIN = {
    "request_time_ms": [10, 20, 30, 40],
    "history_key": [1, 1, 1, 1],
    "item": ["b", "a", None, "b"],
    "user": [2**63 + 5, 2**64 - 1, 7, 7],
    "tags": [["x", None, "y"], None, [], ["y"]],
    "price": [1.0, None, 4.0, None],
    "age": [1, 2, 3, 4],
    "label": [0, 1, 0, 1],
}
VALID = {
    "request_time_ms": [50, 60],
    "history_key": [1, 1],
    "item": ["z", "z"],
    "user": [2**63 + 5, 8],
    "tags": [["z"], ["y", "x"]],
    "price": [None, 100.0],
    "age": [5, 6],
    "label": [1, 0],
}
CLICKS = {
    "history_key": [1, 1, 1, 1],
    "time_ms": [5, 15, 39, 40],
    "item": ["a", "c", None, "z"],
    "amount": [2.0, None, 4.0, 900.0],
}


def write(tmp_path, schema=SCHEMA, train=TRAIN, clicks=CLICKS):
    users = {
        name: columns | {"user": pa.array(columns["user"], pa.uint64())}
        for name, columns in (("t", train), ("v", VALID))
    }
    return Tables({"train": users["t"], "valid": users["v"]}, {"click": clicks}, schema).write(tmp_path / "data", 2)


def test_the_frequent_values_of_training_have_ids_and_nulls_their_row(tmp_path):
    dataset = open_dataset(write(tmp_path), tmp_path / "cache")
    rows = dataset.source.rows(np.arange(6), {"click": 9})
    # a and b occur twice each, in examples and in clicks before the last training request; c once; z after it.
    assert rows.categorical[:4, 0].tolist() == [1, 0, NULL_ID, 1]
    beyond = rows.categorical[4:, 0]
    assert beyond[0] == beyond[1] >= 3
    assert rows.categorical[:5, 1].tolist() == [2, 1, 0, 0, 2]
    assert rows.categorical[5, 1] >= 9
    clicks = rows.events["click"]
    assert clicks.ids[clicks.splits[5] :, 0].tolist()[0] == 0 and clicks.ids[clicks.splits[5] + 2, 0] == NULL_ID
    assert clicks.ids[-1, 0] == beyond[0], "the same value has the same id everywhere"
    tags = rows.multi_valued["tags"]
    assert np.diff(tags.splits).tolist() == [2, 0, 0, 1, 1, 2]
    assert tags.values[:3].tolist() == [1, 0, 0] and tags.values[3] >= 4 and tags.values[4:].tolist() == [0, 1]


def test_nulls_of_dense_columns_are_means_of_training_and_marked(tmp_path):
    dataset = open_dataset(write(tmp_path), tmp_path / "cache")
    assert dataset.schema.dense == ("price", "age", "price_is_null")
    assert dataset.schema.events[0].dense == ("amount", "amount_is_null")
    rows = dataset.source.rows(np.arange(6), {"click": 9})
    assert rows.dense[:, 0].tolist() == [1.0, 2.5, 4.0, 2.5, 2.5, 100.0]
    assert rows.dense[:, 2].tolist() == [0, 1, 0, 1, 1, 0]
    clicks = rows.events["click"].dense[rows.events["click"].splits[5] :]
    assert clicks.tolist() == [[2, 0], [3, 1], [4, 0], [900, 0]]


def test_one_price_in_the_wrong_unit_leaves_nulls_and_scale_as_they_are(tmp_path):
    """Whatever its row group holds, and in a field of events as in a feature."""
    rng = np.random.default_rng(0)
    rows = 1000
    price = rng.normal(10, 2, rows).astype(np.float32)
    null = np.arange(rows) % 3 == 1
    schema = Schema(
        "prices",
        (),
        dense=("price", "age"),
        events=(EventType("click", (), ("amount",)),),
        allow=("relative_times",),
        nulls=(("price", "indicator"), ("click.amount", "indicator")),
    )
    for wrong in (0.0, 1e15, -3e6):
        given = price.copy()
        given[500] += wrong
        masked = pa.array(given, mask=null)
        columns = {"request_time_ms": np.arange(rows) + 1, "history_key": np.zeros(rows, int), "price": masked}
        columns |= {"age": np.arange(rows) % 7, "label": np.arange(rows) % 2}
        clicks = {"history_key": np.zeros(rows, int), "time_ms": np.arange(rows), "amount": masked}
        tables = Tables({"train": columns}, {"click": clicks}, schema)
        dataset = open_dataset(tables.write(tmp_path / f"data{wrong}", row_group=50), tmp_path / "cache")
        rest = price[~null & ((np.arange(rows) != 500) | (wrong == 0))].astype(np.float64)
        assert dataset.learned is not None
        assert read_learned(dataset.learned)["means"] == {
            "price": pytest.approx(rest.mean(), rel=1e-12),
            "click.amount": pytest.approx(rest.mean(), rel=1e-12),
        }
        moments = dense_moments(dataset)
        assert (moments.mean[0], moments.std[0]) == pytest.approx((rest.mean(), rest.std()), rel=1e-12)
        of_nulls = dataset.source.rows(np.flatnonzero(null), {"click": 0}).dense[:, 0]
        assert np.abs(of_nulls - moments.mean[0]).max() < 1e-6 * moments.std[0]


def test_the_usual_mean_is_that_of_numpy_with_what_is_out_of_proportion_left_out():
    rng = np.random.default_rng(0)
    columns = {
        "one value": np.full(300, 0.1),
        "of both signs": rng.normal(size=5000),
        "close together": 1e4 + rng.random(500),
        "of a heavy tail": rng.lognormal(0, 3, 5000),
        "few": np.array([1.0, 1.0001, 5.0, np.nan]),
        "zeros and a seven": np.r_[np.zeros(300), -np.zeros(300), 7.0],
    }
    kept_whole = ("one value", "few", "zeros and a seven")  # what the rule keeps where nothing spreads
    for name, values in columns.items():
        for odd in ([], [] if name in kept_whole else [1e17, -1e17, 1e15]):
            column = np.r_[values, odd].astype(np.float32)
            mean = UsualMean()
            for part in np.array_split(rng.permutation(column), 7):
                mean.add(part)
            expected = np.nanmean(column[: len(values)].astype(np.float64))
            assert mean.mean() == pytest.approx(expected, rel=1e-12, abs=1e-12), (name, odd)
    assert UsualMean().mean() == 0.0


def test_what_was_learned_is_kept_beside_the_columns(tmp_path):
    dataset = open_dataset(write(tmp_path), tmp_path / "cache")
    assert dataset.learned is not None
    table = pq.read_table(dataset.learned / "vocabulary.0.parquet")
    assert table.to_pydict() == {"value": ["a", "b"], "count": [2, 2]}
    learned = read_learned(dataset.learned)
    assert learned["vocabularies"]["item"] == {"file": "vocabulary.0.parquet", "values": 2, "left_out": 1}
    assert learned["means"] == {"price": 2.5, "click.amount": 3.0}
    *_, table = summary(dataset).split("\n\n")
    assert [line.split()[-2:] for line in table.splitlines()[1:]] == [["2", "1"], ["3", "0"], ["2", "0"]]
    users = pq.read_table(dataset.learned / "vocabulary.1.parquet")
    assert users["value"].to_pylist() == ["7", str(2**64 - 1), str(2**63 + 5)]
    plain = dataclasses.replace(
        SCHEMA, categorical=(Categorical("age", 9),), multi_valued=(), dense=(), events=(), nulls=()
    )
    columns = {name: TRAIN[name] for name in ("request_time_ms", "age", "label")}
    other = open_dataset(Tables({"train": columns}, {}, plain).write(tmp_path / "plain"), tmp_path / "cache")
    assert other.learned is None


def test_nulls_and_values_out_of_vocabulary_read_rows_of_their_own():
    tables = SCHEMA.tables
    assert tables["item"] == Table("item", 5, 3, "oov", vocabulary=True, min_count=2)
    assert tables["user"].rows == 9
    ids = np.array([[0, 3], [3, 8], [NULL_ID, 10**15]])
    mapped, beyond = map_ids(ids, SCHEMA.categorical)
    assert mapped[:, 0].tolist() == [0, 3, 4]
    assert mapped[:2, 1].tolist() == [3, 8] and mapped[2, 1] == hashed(np.array([10**15]), 9)[0]
    assert beyond.tolist() == [1, 1]


def test_a_vocabulary_counts_exactly_and_ranks_by_frequency_then_text():
    rng = np.random.default_rng(0)
    words = [f"w{n}" for n in rng.zipf(1.3, 20_000) % 997]
    counter = Counter()
    for start in range(0, len(words), 700):
        counter.add(pa.array([*words[start : start + 700], None], pa.large_string()))
    vocabulary = Vocabulary.of(counter, Table("t", 0, 100, "hash", True, 3))
    counts = collections.Counter(words)
    ranked = sorted(((-n, word) for word, n in counts.items() if n >= 3))[:100]
    assert vocabulary.values.to_pylist() == [word for _, word in ranked]
    assert vocabulary.counts.to_pylist() == [-n for n, _ in ranked]
    assert vocabulary.left_out == len(counts) - len(ranked)
    ids = vocabulary.ids(pa.array([*words, "new"], pa.large_string()))
    known = {word: number for number, (_, word) in enumerate(ranked)}
    assert all((known[w] == i) if w in known else i >= 100 for w, i in zip([*words, "new"], ids, strict=True))
    assert len(set(ids[ids >= 100])) == len({w for w in words if w not in known}) + 1


@pytest.mark.parametrize(
    ("column", "value", "policy"),
    [("item", None, "own_row"), ("tags", [None], "dropped"), ("tags", None, "dropped"), ("price", None, "indicator")],
)
def test_nulls_without_a_policy_are_refused_and_the_policy_is_named(column, value, policy, tmp_path):
    schema = dataclasses.replace(SCHEMA, nulls=tuple((c, p) for c, p in SCHEMA.nulls if c != column))
    train = {name: list(values) for name, values in TRAIN.items()}
    fill = {"item": "a", "tags": [], "price": 0.0}[column]
    train[column] = [fill, fill, fill, value]
    message = f'there must be a value in every row, or schema.json "nulls": {{"{column}": "{policy}"}}'
    with pytest.raises(DataError, match=re.escape(f"column {column!r}: value null; {message}")):
        open_dataset(write(tmp_path, schema, train), tmp_path / "cache")


def test_a_null_field_of_an_event_names_its_policy(tmp_path):
    schema = dataclasses.replace(SCHEMA, nulls=tuple((c, p) for c, p in SCHEMA.nulls if c != "click.amount"))
    with pytest.raises(DataError, match=re.escape('or schema.json "nulls": {"click.amount": "indicator"}')):
        open_dataset(write(tmp_path, schema), tmp_path / "cache")


PLAIN = Schema(
    "types",
    (Categorical("item", 9),),
    multi_valued=(Categorical("tags", 9),),
    dense=("price",),
    keys=("key",),
    allow=("relative_times",),
)
COLUMNS = {
    "request_time_ms": [5, 6, 7],
    "item": [1, 2, 1],
    "tags": [[1], [], [2, 3]],
    "price": [1.5, 2.0, -1.5],
    "key": ["x", "y", "x"],
    "label": [1, 0, 1],
}
TYPES = {
    "decimal ids": ("item", pa.array([D(1), D(2), D(1)], pa.decimal128(9, 0))),
    "ids in a dictionary": ("item", pa.array([1, 2, 1], pa.uint16()).dictionary_encode()),
    "lists with long offsets": ("tags", pa.array([[1], [], [2, 3]], pa.large_list(pa.int8()))),
    "views of lists": ("tags", pa.array([[1], [], [2, 3]], pa.list_view(pa.int32()))),
    "long views of lists": ("tags", pa.array([[1], [], [2, 3]], pa.large_list_view(pa.uint32()))),
    "lists of decimals": ("tags", pa.array([[D(1)], [], [D(2), D(3)]], pa.list_(pa.decimal128(5, 0)))),
    "half precision": ("price", pa.array([1.5, 2.0, -1.5], pa.float16())),
    "decimal prices": ("price", pa.array([D("1.5"), D(2), D("-1.5")], pa.decimal128(9, 2))),
    "prices in a dictionary": ("price", pa.array([1.5, 2.0, -1.5]).dictionary_encode()),
    "long text": ("key", pa.array(["x", "y", "x"], pa.large_string())),
    "views of text": ("key", pa.array(["x", "y", "x"], pa.string_view())),
    "labels in a dictionary": ("label", pa.array([1, 0, 1], pa.int8()).dictionary_encode()),
    "decimal labels": ("label", pa.array([D(1), D(0), D(1)], pa.decimal128(3, 1))),
}


@pytest.mark.parametrize("case", TYPES)
def test_types_that_lose_nothing_are_the_same_values(case, tmp_path):
    name, array = TYPES[case]
    for number in range(2):
        columns = COLUMNS | ({name: array} if number else {})
        root = Tables({"train": columns}, {}, PLAIN).write(tmp_path / f"{number}", files=1)
        source = open_dataset(root, tmp_path / "cache").source
        rows = source.rows(np.arange(3), {})
        assert rows.categorical[:, 0].tolist() == [1, 2, 1]
        assert rows.multi_valued["tags"].values.tolist() == [1, 2, 3]
        assert rows.multi_valued["tags"].splits.tolist() == [0, 1, 1, 3]
        assert rows.dense[:, 0].tolist() == [1.5, 2.0, -1.5]
        assert rows.labels[:, 0].tolist() == [1, 0, 1]
        assert source.keys(np.arange(3))["key"].tolist() == ["x", "y", "x"]


WRONG = {
    "numbers with a point": ("item", pa.array([1.0, 2.0, 1.0]), "int64"),
    "decimals with a fraction": ("item", pa.array([D("1.5")] * 3, pa.decimal128(9, 1)), "int64"),
    "text": ("item", pa.array(["1", "2", "1"]), '"vocabulary": true'),
    "days as ids": ("item", pa.array([1, 2, 1], pa.date32()), "int32"),
    "times as prices": ("price", pa.array([1, 2, 1], pa.timestamp("ms")), "int64"),
    "prices as text": ("price", pa.array(["1.5", "2", "1"]), "float32"),
    "days as times": ("request_time_ms", pa.array([1, 2, 3], pa.date32()), "timestamp[ms]"),
    "lists of text": ("tags", pa.array([["a"], [], []]), '"vocabulary": true'),
    "a list of lists": ("tags", pa.array([[[1]], [], []]), "list<int64>"),
    "bytes as keys": ("key", pa.array([b"x", b"y", b"x"]), "string"),
    "a structure": ("price", pa.array([{"a": 1}] * 3), "float32"),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_types_are_refused_with_the_cast_to_write(case, tmp_path):
    name, array, cast = WRONG[case]
    root = Tables({"train": COLUMNS | {name: array}}, {}, PLAIN).write(tmp_path / "data", files=1)
    with pytest.raises(DataError, match=f"column {name!r}: its type is .*; it must be .*{re.escape(cast)}"):
        open_dataset(root, tmp_path / "cache")
    if case in ("numbers with a point", "days as ids", "times as prices", "prices as text", "days as times"):
        assert pc.cast(array, cast), "the cast that is written works"
