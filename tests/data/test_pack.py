"""`pack` against the same thing written as plain loops."""

import dataclasses
import itertools

import numpy as np
import pytest

from kunlun_jax.data.dataset import EventRows, Ragged, Rows
from kunlun_jax.data.pack import Counts, capacity_names, hashed, longest_that_fits, map_ids, pack
from kunlun_jax.data.schema import Categorical, EventType, Schema
from pallas_kernels.jagged import aligned
from tests.data.parquet.parquet_sets import SCHEMA

ROOMY = {"click": 512, "like": 512, "tags": 512, "words": 512}
TIGHT = {"click": 96, "like": 40, "tags": 48, "words": 512}


def splits_of(lengths) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def random_rows(count: int, seed: int = 0, longest: int = 30) -> Rows:
    rng = np.random.default_rng(seed)

    def history(fields: int, dense: int) -> EventRows:
        splits = splits_of(rng.integers(0, longest, count))
        available = np.diff(splits) + rng.integers(0, 5, count)
        ids = rng.integers(0, 12, (splits[-1], fields))
        # Large times: float32 seconds since the epoch would be minutes off.
        time_ms = rng.integers(1_700_000_000_000, 1_700_000_900_000, splits[-1])
        return EventRows(ids, rng.normal(size=(splits[-1], dense)).astype(np.float32), time_ms, splits, available)

    def lists() -> Ragged:
        splits = splits_of(rng.integers(0, 20, count))
        return Ragged(rng.integers(0, 9, splits[-1]), splits)

    return Rows(
        row=rng.integers(0, 1000, count),
        categorical=rng.integers(0, 12, (count, 2)),
        multi_valued={"tags": lists(), "words": lists()},
        dense=rng.normal(size=(count, 1)).astype(np.float32),
        events={"click": history(2, 1), "like": history(1, 0)},
        labels=rng.random((count, 2)).astype(np.float32),
        weights=rng.random(count).astype(np.float32),
        request_time_ms=rng.integers(1_700_000_900_000, 1_700_001_000_000, count),
    )


def table_row(value: int, feature: Categorical) -> int:
    """Of one id, by Python's own integers."""
    if value < feature.size:
        return value
    if feature.overflow == "oov":
        return feature.size
    mask = 2**64 - 1
    mixed = (value + 0x9E3779B97F4A7C15) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    return (mixed ^ (mixed >> 31)) % feature.size


def longest_by_search(lengths, capacity: int) -> int:
    cut = 0
    while sum(-(-min(n, cut + 8) // 8) * 8 for n in lengths) <= capacity:
        cut += 8
    return cut


def lay_out(splits, capacity: int, newest: bool) -> tuple[list[list[int]], list[int]]:
    """Items of each example after the cut, and the first row of each."""
    items = [list(range(a, b)) for a, b in itertools.pairwise(splits)]
    if sum(-(-len(i) // 8) * 8 for i in items) > capacity:
        cut = longest_by_search([len(i) for i in items], capacity)
        items = [(i[len(i) - min(cut, len(i)) :] if newest else i[:cut]) for i in items]
    starts = [0]
    for example in items:
        starts.append(starts[-1] + -(-len(example) // 8) * 8)
    return items, starts


@pytest.mark.parametrize("capacity", [ROOMY, TIGHT], ids=["roomy", "tight"])
@pytest.mark.parametrize(("count", "size"), [(9, 9), (6, 9), (0, 3), (1, 1)])
def test_pack_is_the_loops(count, size, capacity):
    rows = random_rows(count)
    batch, counts = pack(SCHEMA, rows, size, capacity)
    beyond: dict[str, int] = {}

    def expected_rows(name: str, features, ids) -> np.ndarray:
        for i, feature in enumerate(features):
            key = f"{name}.{feature.name}" if name else feature.name
            beyond[key] = beyond.get(key, 0) + sum(int(v) >= feature.size for v in ids[:, i])
        return np.array([[table_row(int(v), f) for v, f in zip(line, features, strict=True)] for line in ids], np.int32)

    assert batch.size == size
    if count:
        np.testing.assert_array_equal(
            batch.categorical[:count], expected_rows("", SCHEMA.categorical, rows.categorical), strict=True
        )
    for got, given in (
        (batch.dense, rows.dense),
        (batch.labels, rows.labels),
        (batch.weights, rows.weights),
        (batch.request_time, (rows.request_time_ms // 1000).astype(np.uint32)),
        (batch.row, rows.row.astype(np.int32)),
    ):
        np.testing.assert_array_equal(got[:count], given, strict=True)
    assert np.all(batch.weights[count:] == 0)
    assert np.all(batch.row[count:] == -1)
    assert np.all(batch.categorical[count:] == 0)

    for feature in SCHEMA.multi_valued:
        ragged, jagged = rows.multi_valued[feature.name], batch.multi_valued[feature.name]
        items, starts = lay_out(ragged.splits, capacity[feature.name], newest=False)
        expected = np.zeros(capacity[feature.name], np.int32)
        for example, start in zip(items, starts, strict=False):
            if example:
                ids = expected_rows("", (feature,), ragged.values[example][:, None])
                expected[start : start + len(example)] = ids[:, 0]
        np.testing.assert_array_equal(jagged.values, expected, strict=True)
        check_splits(jagged, items, starts, size)
        assert counts.items[feature.name] == sum(map(len, items))
        assert counts.items_cut_by_capacity[feature.name] == ragged.splits[-1] - sum(map(len, items))

    for event in SCHEMA.events:
        history, jagged, room = rows.events[event.name], batch.events[event.name], capacity[event.name]
        items, starts = lay_out(history.splits, room, newest=True)
        ids = np.zeros((room, len(event.categorical)), np.int32)
        dense, age = np.zeros((room, len(event.dense)), np.float32), np.zeros(room, np.float32)
        for b, (example, start) in enumerate(zip(items, starts, strict=False)):
            for offset, item in enumerate(example):
                ids[start + offset] = expected_rows(event.name, event.categorical, history.ids[[item]])[0]
                dense[start + offset] = history.dense[item]
                age[start + offset] = (int(rows.request_time_ms[b]) - int(history.time_ms[item])) / 1000
        np.testing.assert_array_equal(jagged.values["ids"], ids, strict=True)
        np.testing.assert_array_equal(jagged.values["dense"], dense, strict=True)
        np.testing.assert_array_equal(jagged.values["age"], age, strict=True)
        check_splits(jagged, items, starts, size)
        assert counts.events[event.name] == sum(map(len, items))
        assert counts.events_cut_by_capacity[event.name] == history.splits[-1] - sum(map(len, items))
        assert counts.events_cut[event.name] == history.available.sum() - history.splits[-1]

    assert (counts.examples, counts.filled) == (count, size - count)
    assert {name: n for name, n in counts.beyond_vocabulary.items() if n} == {k: n for k, n in beyond.items() if n}
    if capacity is TIGHT and count == 9:
        assert min(counts.events_cut_by_capacity.values()) > 0, "the tight case must cut"


def check_splits(jagged, items, starts, size: int) -> None:
    expected = starts + [starts[-1]] * (size - len(items))
    np.testing.assert_array_equal(jagged.row_splits, np.array(expected, np.int32), strict=True)
    lengths = [len(example) for example in items] + [0] * (size - len(items))
    np.testing.assert_array_equal(jagged.lengths, np.array(lengths, np.int32), strict=True)


def test_a_block_of_rows_for_each_list_leaves_something_of_all_and_less_may_leave_nothing():
    rng = np.random.default_rng(1)
    for _ in range(200):
        lengths = rng.integers(9, 100, rng.integers(2, 30))
        assert longest_that_fits(lengths, 8 * len(lengths)) >= 8
        assert longest_that_fits(lengths, 8 * (len(lengths) - 1)) == 0
    for rows in (1, 4, 7):
        assert longest_that_fits(np.full(512, 40), rows * 512) == 0


def test_longest_that_fits_is_the_largest():
    rng = np.random.default_rng(0)
    tried = 0
    for _ in range(300):
        lengths = rng.integers(0, 60, rng.integers(1, 12))
        capacity = int(rng.integers(0, 40)) * 8
        if aligned(lengths).sum() <= capacity:
            continue
        tried += 1
        assert longest_that_fits(lengths, capacity) == longest_by_search(lengths, capacity)
    assert tried > 50


def test_a_capacity_too_small_for_anything_leaves_empty_histories():
    batch, counts = pack(SCHEMA, random_rows(9), 9, ROOMY | {"click": 8})
    assert counts.events["click"] == 0
    assert np.all(batch.events["click"].lengths == 0)
    assert not batch.events["click"].values["ids"].any()


def test_hash_spreads_and_oov_does_not():
    ids = np.arange(5, 10_005)[:, None]
    rows, beyond = map_ids(np.repeat(ids, 2, 1), (Categorical("a", 5), Categorical("b", 5, overflow="hash")))
    assert np.all(rows[:, 0] == 5)
    assert np.bincount(rows[:, 1], minlength=5).min() > 1800
    assert beyond.tolist() == [10_000, 10_000]
    large = np.array([97, 2**40, 2**63 - 1])
    assert hashed(large, 97).tolist() == [table_row(int(v), Categorical("h", 97, "hash")) for v in large]


def test_wrong_arguments_are_named():
    rows = random_rows(3)
    with pytest.raises(ValueError, match="3 rows do not fit a batch of 2"):
        pack(SCHEMA, rows, 2, ROOMY)
    with pytest.raises(ValueError, match="capacity of 'click' is 12 rows; it must be a positive multiple of 8"):
        pack(SCHEMA, rows, 3, ROOMY | {"click": 12})
    with pytest.raises(ValueError, match="capacity of 'like' is 0 rows"):
        pack(SCHEMA, rows, 3, ROOMY | {"like": 0})
    with pytest.raises(ValueError, match=r"capacity names \['click'\]; schema 'toy' needs exactly"):
        pack(SCHEMA, rows, 3, {"click": 8})
    twice = Schema("twice", (), multi_valued=(Categorical("a", 2),), events=(EventType("a", ()),))
    with pytest.raises(ValueError, match=r"schema 'twice': \['a'\] name both"):
        capacity_names(twice)


def test_counts_add_up():
    parts = [pack(SCHEMA, random_rows(4, seed), 5, TIGHT)[1] for seed in range(3)]
    total = sum(parts, Counts())
    assert total.examples == 12
    assert total.filled == 3
    for field in dataclasses.fields(Counts):
        if field.name in ("examples", "filled", "events_of_fullest"):
            continue
        for name, number in getattr(total, field.name).items():
            assert number == sum(getattr(part, field.name)[name] for part in parts)
    flat = total.flat()
    assert flat["examples"] == 12
    assert flat["events_cut/click"] == total.events_cut["click"]
    assert flat["beyond_vocabulary/click.item"] == total.beyond_vocabulary["click.item"] > 0
