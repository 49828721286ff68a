"""`open_dataset` and `ParquetSource` against plain loops over the tables that were written."""

import concurrent.futures
import copy
import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kunlun_jax.data.dataset import Dataset, group_numbers
from kunlun_jax.data.parquet import columns, source
from kunlun_jax.data.parquet.report import DataError
from kunlun_jax.data.parquet.source import open_dataset
from kunlun_jax.data.schema import Categorical, EventType, Schema
from tests.data.parquet.parquet_sets import Tables, random_tables


@pytest.fixture(scope="module")
def tables() -> Tables:
    return random_tables()


@pytest.fixture(scope="module")
def dataset(tables, tmp_path_factory) -> Dataset:
    root = tmp_path_factory.mktemp("set")
    return open_dataset(tables.write(root / "data"), root / "cache")


def plain(column) -> list:
    return column.to_pylist() if isinstance(column, pa.Array) else list(column)


def test_a_missing_label_is_nan_and_the_rate_is_that_of_the_rest(tmp_path):
    tables = random_tables()
    tables.schema = dataclasses.replace(tables.schema, nulls=(("rated", "masked"),))
    rng = np.random.default_rng(3)
    expected = {}
    for split, given in tables.examples.items():
        labels = [None if rng.random() < 0.4 else float(label) for label in given["rated"]]
        given["rated"] = pa.array(labels, pa.float64())
        expected[split] = np.array([np.nan if label is None else label for label in labels], np.float32)
    dataset = open_dataset(tables.write(tmp_path / "data"), tmp_path / "cache")
    most = {event.name: 0 for event in dataset.schema.events}
    for split, labels in expected.items():
        rows = dataset.source.rows(np.asarray(dataset.split(split)), most)
        assert 0 < np.isnan(labels).sum() < 60
        np.testing.assert_array_equal(rows.labels[:, 1], labels)
        np.testing.assert_array_equal(rows.labels[:, 0], np.asarray(tables.examples[split]["bought"], np.float32))
    total = weight = 0.0
    for label, own in zip(expected["train"], tables.examples["train"]["weight"], strict=True):
        if not np.isnan(label):
            total, weight = total + float(label) * own, weight + own
    assert dataset.p_train[1] == pytest.approx(total / weight, rel=1e-6)
    bought = np.average(tables.examples["train"]["bought"], weights=tables.examples["train"]["weight"])
    assert dataset.p_train[0] == pytest.approx(bought, rel=1e-6)


def history(tables: Tables, event: str, key: int, before: int) -> list[int]:
    """Positions of the events strictly before a time, oldest first."""
    columns = tables.events[event]
    pairs = zip(columns["history_key"], columns["time_ms"], strict=True)
    return [i for i, (k, t) in enumerate(pairs) if k == key and t < before]


@pytest.mark.parametrize("most", [3, 1000])
def test_rows_are_those_of_the_tables(dataset, tables, most):
    schema, start = dataset.schema, 0
    found_any = cut_any = 0
    for split in ("train", "valid", "test"):
        columns = {name: plain(column) for name, column in tables.examples[split].items()}
        count = len(columns["user"])
        assert dataset.split(split) == range(start, start + count)
        index = np.arange(start, start + count)[::-1]
        index = np.concatenate([index, index[:3]])  # any order, and twice
        rows = dataset.source.rows(index, {"click": most, "like": most})
        here = index - start
        start += count
        np.testing.assert_array_equal(rows.row, index, strict=True)
        expected = np.array([[columns[f.name][i] for f in schema.categorical] for i in here], np.int64)
        np.testing.assert_array_equal(rows.categorical, expected, strict=True)
        np.testing.assert_array_equal(rows.dense[:, 0], np.array(columns["price"], np.float32)[here], strict=True)
        labels = np.array([[columns["bought"][i], columns["rated"][i]] for i in here], np.float32)
        np.testing.assert_array_equal(rows.labels, labels, strict=True)
        np.testing.assert_array_equal(rows.weights, np.array(columns["weight"], np.float32)[here], strict=True)
        np.testing.assert_array_equal(rows.request_time_ms, np.array(columns["request_time_ms"])[here], strict=True)
        for feature in schema.multi_valued:
            ragged = rows.multi_valued[feature.name]
            assert ragged.values.dtype == np.int64
            for b, i in enumerate(here):
                assert ragged.values[ragged.splits[b] : ragged.splits[b + 1]].tolist() == columns[feature.name][i]
            sizes = dataset.source.list_lengths(index, feature.name)
            np.testing.assert_array_equal(sizes, np.diff(ragged.splits), strict=True)
        for event in schema.events:
            got, log = rows.events[event.name], tables.events[event.name]
            assert (got.ids.dtype, got.dense.dtype, got.time_ms.dtype) == (np.int64, np.float32, np.int64)
            for b, i in enumerate(here):
                items = history(tables, event.name, columns["history_key"][i], columns["history_time_ms"][i])
                assert got.available[b] == len(items)
                newest = items[-most:]
                part = slice(got.splits[b], got.splits[b + 1])
                np.testing.assert_array_equal(got.time_ms[part], log["time_ms"][newest])
                for j, field in enumerate(event.categorical):
                    np.testing.assert_array_equal(got.ids[part, j], log[field.name][newest])
                for j, field in enumerate(event.dense):
                    np.testing.assert_array_equal(got.dense[part, j], log[field][newest])
                found_any += len(newest)
                cut_any += len(items) - len(newest)
            np.testing.assert_array_equal(dataset.source.history_lengths(index, event.name), got.available, strict=True)
        keys = dataset.source.keys(index)
        assert keys["user_name"].tolist() == [columns["user_name"][i] for i in here]
        assert keys["request"].tolist() == [columns["request"][i] for i in here]
    assert found_any > 500
    assert (cut_any > 500) == (most == 3)


def test_the_clicks_of_the_request_itself_are_not_its_history(tmp_path):
    schema = Schema("one", (), events=(EventType("click", (Categorical("item", 9),)),), allow=("relative_times",))
    examples = {"request_time_ms": [10, 20, 20], "history_key": [4, 4, 5], "label": [0, 1, 1]}
    events = {"history_key": [4, 4, 4, 5], "time_ms": [9, 10, 20, 19], "item": [1, 2, 3, 4]}
    root = Tables({"train": examples}, {"click": events}, schema).write(tmp_path / "data")
    source = open_dataset(root, tmp_path / "cache").source
    got = source.rows(np.arange(3), {"click": 10}).events["click"]
    assert [got.ids[a:b, 0].tolist() for a, b in zip(got.splits, got.splits[1:], strict=False)] == [[1], [1, 2], [4]]


def test_p_train_is_the_weighted_mean_of_the_training_split(dataset, tables, tmp_path):
    train = tables.examples["train"]
    weights = np.asarray(train["weight"], np.float32).astype(np.float64)
    for i, task in enumerate(("bought", "rated")):
        expected = np.average(np.asarray(train[task], np.float64), weights=weights)
        assert dataset.p_train[i] == pytest.approx(expected, rel=1e-12)
    unweighted = copy.deepcopy(tables)
    del unweighted.examples["train"]["weight"]
    source = open_dataset(unweighted.write(tmp_path / "data"), tmp_path / "cache")
    assert source.p_train[0] == pytest.approx(np.mean(train["bought"]), rel=1e-12)
    assert np.all(source.source.rows(np.arange(60), {"click": 1, "like": 1}).weights == 1)


def test_files_and_row_groups_make_no_difference(dataset, tables, tmp_path):
    other = open_dataset(tables.write(tmp_path / "data", row_group=1000, files=1), tmp_path / "cache")
    index = np.arange(180)
    most = {"click": 7, "like": 1000}
    assert_same(dataset.source.rows(index, most), other.source.rows(index, most))
    assert other.p_train == pytest.approx(dataset.p_train, rel=1e-12)


def assert_same(a, b) -> None:
    """Of two `Rows`, to the bit."""
    if isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b, strict=True)
        return
    a, b = (x if isinstance(x, dict) else vars(x) for x in (a, b))
    assert a.keys() == b.keys()
    for name in a:
        assert_same(a[name], b[name])


def test_a_source_pickles_as_its_path(dataset):
    index = np.arange(50)
    before = dataset.source.rows(index, {"click": 5, "like": 5})
    text = pickle.dumps(dataset.source)
    assert len(text) < 2000
    assert_same(pickle.loads(text).rows(index, {"click": 5, "like": 5}), before)


def test_no_rows_at_all_and_rows_outside(dataset):
    rows = dataset.source.rows(np.zeros(0, np.int64), {"click": 5, "like": 5})
    assert rows.categorical.shape == (0, 2)
    assert rows.events["click"].ids.shape == (0, 2)
    assert dataset.source.keys(np.zeros(0, np.int64))["user_name"].shape == (0,)
    for outside in (-1, 180):
        with pytest.raises(IndexError, match="rows 0 to 179"):
            dataset.source.rows(np.array([outside]), {"click": 5, "like": 5})
    with pytest.raises(KeyError, match="no event type 'order'"):
        dataset.source.history_lengths(np.array([0]), "order")
    with pytest.raises(KeyError, match="no multi-valued feature 'order'; it has"):
        dataset.source.list_lengths(np.array([0]), "order")


def test_text_of_keys_is_as_it_was_and_takes_no_more_room_than_it_has(tmp_path):
    """Whatever its end is, and however long one of them is."""
    schema = Schema("text", (), keys=("k",), group="k", allow=("relative_times",))
    names = ["a", "a\0", "", "\0", "x" * 10_000, "é"]
    columns = {"request_time_ms": range(6), "k": names, "label": [0, 1] * 3}
    dataset = open_dataset(Tables({"train": columns}, {}, schema).write(tmp_path / "data", files=1), tmp_path / "cache")
    keys = dataset.source.keys(np.tile(np.arange(6), 1000))["k"]
    assert keys.tolist() == names * 1000
    assert keys.nbytes <= 8 * 6000
    groups = group_numbers(dataset.source, np.arange(6))
    assert groups is not None and groups.tolist() == list(range(6))


def test_a_schema_of_context_alone(tmp_path):
    schema = Schema("plain", (Categorical("a", 3),), keys=("a",), allow=("relative_times",))
    columns = {"request_time_ms": [5, 6], "a": [1, 2], "label": [0.0, 1.0]}
    dataset = open_dataset(Tables({"train": columns}, {}, schema).write(tmp_path / "data", files=1), tmp_path / "cache")
    rows = dataset.source.rows(np.array([1]), {})
    assert rows.categorical.tolist() == [[2]]
    assert rows.events == {}
    assert dataset.source.keys(np.array([1]))["a"].tolist() == [2]


def test_labels_may_be_true_and_false_and_ids_of_any_integer_type(tmp_path):
    schema = Schema(
        "types",
        (Categorical("a", 3),),
        multi_valued=(Categorical("m", 3),),
        dense=("d",),
        keys=("k",),
        allow=("relative_times",),
    )
    columns = {
        "request_time_ms": pa.array([5, 6], pa.uint32()),
        "a": pa.array([1, 2], pa.uint64()),
        "m": pa.array([[1], [2]], pa.list_(pa.uint8(), 1)),
        "d": pa.array([1, 2], pa.int32()),
        "k": pa.array(["x", "y"]).dictionary_encode(),
        "label": [True, False],
    }
    dataset = open_dataset(Tables({"train": columns}, {}, schema).write(tmp_path / "data", files=1), tmp_path / "cache")
    rows = dataset.source.rows(np.array([0, 1]), {})
    assert rows.categorical.tolist() == [[1], [2]]
    assert rows.multi_valued["m"].values.tolist() == [1, 2]
    assert rows.dense.tolist() == [[1], [2]]
    assert rows.labels.tolist() == [[1], [0]]
    assert dataset.source.keys(np.array([0, 1]))["k"].tolist() == ["x", "y"]


def test_the_fingerprint_follows_the_content_and_nothing_else(dataset, tables, tmp_path):
    moved = open_dataset(tables.write(tmp_path / "elsewhere"), tmp_path / "cache")
    assert moved.fingerprint == dataset.fingerprint
    changed = copy.deepcopy(tables)
    changed.events["like"]["item"][-1] += 1
    assert open_dataset(changed.write(tmp_path / "event"), tmp_path / "cache").fingerprint != dataset.fingerprint
    changed = copy.deepcopy(tables)
    changed.examples["test"]["bought"][-1] ^= 1
    assert open_dataset(changed.write(tmp_path / "label"), tmp_path / "cache").fingerprint != dataset.fingerprint
    changed = copy.deepcopy(tables)
    changed.schema = Schema(**(vars(tables.schema) | {"group": ""}))
    assert open_dataset(changed.write(tmp_path / "schema"), tmp_path / "cache").fingerprint != dataset.fingerprint


def test_the_cache_is_used_again_and_its_place_is_a_variable(tables, tmp_path, monkeypatch):
    monkeypatch.setenv("KUNLUN_CACHE", str(tmp_path / "cache"))
    root = tables.write(tmp_path / "data")
    first = open_dataset(root)
    monkeypatch.setattr(columns, "_Conversion", None)  # calling it would fail
    second = open_dataset(root)
    assert second == first
    assert [path.name for path in (tmp_path / "cache").glob("*/")] == [first.fingerprint]


def test_a_crash_leaves_nothing_and_the_next_try_works(tables, tmp_path, monkeypatch):
    root, cache = tables.write(tmp_path / "data"), tmp_path / "cache"
    join = columns._Histories.before
    calls = []

    def fails_late(*args):
        calls.append(args)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return join(*args)

    with monkeypatch.context() as patch:
        patch.setattr(columns._Histories, "before", fails_late)
        with pytest.raises(KeyboardInterrupt):
            open_dataset(root, cache)
    assert list(cache.glob("*/")) == []
    assert len(open_dataset(root, cache).source) == 180


def test_two_that_convert_at_once_agree(tables, tmp_path):
    root, cache = tables.write(tmp_path / "data"), tmp_path / "cache"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        datasets = list(pool.map(lambda _: open_dataset(root, cache), range(4)))
    assert all(dataset == datasets[0] for dataset in datasets)
    assert [path.name for path in cache.glob("*/")] == [datasets[0].fingerprint]


def test_a_file_that_changes_meanwhile_is_refused(tables, tmp_path, monkeypatch):
    root, cache = tables.write(tmp_path / "data"), tmp_path / "cache"

    fingerprint = columns.fingerprint

    def then_append(layout, folder):
        found = fingerprint(layout, folder)
        changed = copy.deepcopy(tables)
        changed.events["like"]["item"][:] = 3
        changed.write(root)
        return found

    monkeypatch.setattr(source, "fingerprint", then_append)
    with pytest.raises(DataError, match="the file changed while it was read") as caught:
        open_dataset(root, cache)
    assert str(Path("data")) in str(caught.value)

    assert list(cache.glob("*/")) == []
