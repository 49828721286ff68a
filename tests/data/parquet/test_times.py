"""Times of any unit become the same milliseconds; a unit that is not what the schema says is refused, in any column."""

import dataclasses
import itertools

import numpy as np
import pyarrow as pa
import pytest

from kunlun_jax.data.parquet.report import DataError
from kunlun_jax.data.parquet.source import open_dataset
from kunlun_jax.data.parquet.times import Span
from kunlun_jax.data.parquet.validate import main
from tests.data.parquet.parquet_sets import SCHEMA, Tables, random_tables

PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
EXAMPLES, EVENTS = ("request_time_ms", "history_time_ms"), ("time_ms",)
INDEX, MOST = np.arange(180), {"click": 1000, "like": 1000}


def tables_of(change, schema=SCHEMA, split_gap: int = 1000) -> Tables:
    """Random tables in whole seconds, each column of times given to ``change(seconds, is of events)``."""
    tables = random_tables()
    for number, split in enumerate(("train", "valid", "test")):
        for name in EXAMPLES:
            seconds = np.asarray(tables.examples[split][name]) - 1000 * number - 10**12 + split_gap * number + 10**9
            tables.examples[split][name] = change(seconds, False)
    for event in tables.events.values():
        event["time_ms"] = change(np.asarray(event["time_ms"]) - 10**12 + 10**9, True)
    tables.schema = schema
    return tables


def times_of(root, cache):
    rows = open_dataset(root, cache).source.rows(INDEX, MOST)
    return [rows.request_time_ms, *(part for e in rows.events.values() for part in (e.time_ms, e.splits, e.ids))]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    found = times_of(tables_of(lambda seconds, _: seconds * 1000).write(folder / "data"), folder / "cache")
    assert all(part.size for part in found)
    return found


@pytest.mark.parametrize("unit", PER_SECOND)
def test_integers_of_any_unit_are_the_same_times(unit, expected, tmp_path):
    schema = dataclasses.replace(SCHEMA, time_unit=unit)
    tables = tables_of(lambda seconds, _: seconds * PER_SECOND[unit], schema)
    for got, wanted in zip(times_of(tables.write(tmp_path / "data"), tmp_path / "cache"), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Kolkata"])
@pytest.mark.parametrize("unit", PER_SECOND)
def test_timestamps_have_their_own_unit_and_count_from_utc(unit, zone, expected, tmp_path):
    # What the schema says of integers does not matter to them.
    schema = dataclasses.replace(SCHEMA, time_unit="ns")
    kind = pa.timestamp(unit, zone)
    tables = tables_of(lambda seconds, _: pa.array(seconds * PER_SECOND[unit], kind), schema)
    for got, wanted in zip(times_of(tables.write(tmp_path / "data"), tmp_path / "cache"), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_finer_times_are_rounded_down_and_keep_their_order(tmp_path):
    schema = dataclasses.replace(SCHEMA, time_unit="us")
    fine = tables_of(lambda seconds, _: seconds * 1_000_000 + 999, schema)
    exact = tables_of(lambda seconds, _: seconds * 1_000_000, schema)
    got, wanted = (
        times_of(tables.write(tmp_path / name), tmp_path / "cache") for name, tables in (("a", fine), ("b", exact))
    )
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


WRONG = [
    (said, true, where)
    for said, true in itertools.permutations(PER_SECOND, 2)
    for where in ("everywhere", "in events", "in examples")
]


@pytest.mark.parametrize(("said", "true", "where"), WRONG)
def test_another_unit_than_the_schema_says_is_refused_and_named(said, true, where, tmp_path, capsys):
    def change(seconds, of_events):
        wrong = where == "everywhere" or of_events == (where == "in events")
        return seconds * PER_SECOND[true if wrong else said]

    root = tables_of(change, dataclasses.replace(SCHEMA, time_unit=said)).write(tmp_path / "data")
    assert main([str(root), "--cache", str(tmp_path / "cache")]) == 1
    lines = capsys.readouterr().out.splitlines()[:-1]
    hint = f'if so, write "time_unit": "{true}" into schema.json'
    assert lines and all(hint in line and "it is 2001-09-09 " in line for line in lines)
    with pytest.raises(DataError, match=r"column '(time_ms|request_time_ms|history_time_ms)': value"):
        open_dataset(root, tmp_path / "cache")


@pytest.mark.parametrize("value", [-1, 0, 631_151_999_999, 4_294_967_296_000])
def test_one_time_out_of_bounds_is_refused(value, tmp_path):
    tables = random_tables()
    tables.events["click"]["time_ms"][0] = value
    with pytest.raises(DataError, match=rf"part-0.parquet: row group 0, row 0, column 'time_ms': value {value}; times"):
        open_dataset(tables.write(tmp_path / "data"), tmp_path / "cache")


def test_relative_times_are_read_where_the_schema_says_so(tmp_path):
    def change(seconds, _):
        return (seconds - 10**9 + 2000) * 1000

    with pytest.raises(DataError, match="relative_times"):
        open_dataset(tables_of(change).write(tmp_path / "a"), tmp_path / "cache")
    tables = tables_of(change, dataclasses.replace(SCHEMA, allow=("relative_times",)))
    assert len(open_dataset(tables.write(tmp_path / "b"), tmp_path / "cache").source) == 180


@pytest.mark.parametrize(("shift", "side"), [(86_400, "after"), (-86_400, "before")])
def test_events_apart_from_all_requests_are_refused_unless_said(shift, side, tmp_path):
    def change(seconds, of_events):
        return (seconds + shift * of_events) * 1000

    with pytest.raises(DataError, match=f"events/click: its events are of .*, all {side} the requests"):
        open_dataset(tables_of(change).write(tmp_path / "a"), tmp_path / "cache")
    tables = tables_of(change, dataclasses.replace(SCHEMA, allow=("events_apart",)))
    dataset = open_dataset(tables.write(tmp_path / "b"), tmp_path / "cache")
    assert bool(dataset.source.history_lengths(INDEX, "click").any()) == (side == "before")


def test_a_split_before_train_is_refused_unless_said(tmp_path):
    def change(seconds, _):
        return seconds * 1000

    with pytest.raises(DataError, match=r"examples/valid: its requests are of .*, mostly before those of train"):
        open_dataset(tables_of(change, split_gap=-200).write(tmp_path / "a"), tmp_path / "cache")
    tables = tables_of(change, dataclasses.replace(SCHEMA, allow=("early_splits",)), split_gap=-200)
    assert set(open_dataset(tables.write(tmp_path / "b"), tmp_path / "cache").splits) == {"train", "valid", "test"}
    # Splits at random lie in the same days.
    assert len(open_dataset(tables_of(change, split_gap=0).write(tmp_path / "c"), tmp_path / "cache").source) == 180


def test_a_span_adds_up_without_overflow():
    span = Span()
    times = np.full(10**6, 4 * 10**12)
    for _ in range(5):
        span.add(times + np.arange(10**6))
    assert (span.first, span.last, span.count) == (4 * 10**12, 4 * 10**12 + 10**6 - 1, 5 * 10**6)
    assert span.total == 5 * (4 * 10**12 * 10**6 + 10**6 * (10**6 - 1) // 2)
