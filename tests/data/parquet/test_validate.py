"""Every kind of bad input is named: by the validator, and by `open_dataset` with the same words."""

import copy
import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kunlun_jax.data.dataset import Dataset
from kunlun_jax.data.parquet.report import DataError
from kunlun_jax.data.parquet.source import open_dataset
from kunlun_jax.data.parquet.validate import main, summary, validate
from kunlun_jax.data.schema import Categorical, EventType, Schema
from tests.data.parquet.parquet_sets import Tables, random_tables, write_table

GOOD = random_tables()
TRAIN_0, TRAIN_1 = "examples/train/part-0.parquet", "examples/train/part-1.parquet"
CLICK_0, CLICK_1 = "events/click/part-0.parquet", "events/click/part-1.parquet"


def column(name: str, row: int, value, split: str = "train", rows: int = 1) -> Callable[[Tables], None]:
    """Puts `value` into some rows of an example column."""

    def change(tables: Tables) -> None:
        given = tables.examples[split][name]
        values = given.to_pylist() if isinstance(given, pa.Array) else list(given)
        values[row : row + rows] = [value] * rows
        tables.examples[split][name] = values

    return change


def event_column(name: str, row: int, value) -> Callable[[Tables], None]:
    def change(tables: Tables) -> None:
        values = list(tables.events["click"][name])
        values[row] = value
        tables.events["click"][name] = values

    return change


def without(name: str) -> Callable[[Tables], None]:
    return lambda tables: tables.examples["train"].pop(name)


def event_swap(first: int, second: int) -> Callable[[Tables], None]:
    def change(tables: Tables) -> None:
        for name, values in tables.events["click"].items():
            values = np.array(values)
            values[[first, second]] = values[[second, first]]
            tables.events["click"][name] = values

    return change


def typed(name: str, kind: pa.DataType) -> Callable[[Tables], None]:
    def change(tables: Tables) -> None:
        tables.examples["train"][name] = pa.array(tables.examples["train"][name]).cast(kind)

    return change


def time_swap(tables: Tables) -> None:
    times = tables.examples["train"]["request_time_ms"]
    times[40], tables.examples["train"]["history_time_ms"][40] = times[0] - 5, 10**12 - 100


# The set has 60 rows a split and 300 events a type, in two files each, with row groups of 7 rows. So row 40 of the
# training split is row 10 in the second file's second row group, and event 200 is row 50 in its eighth (number 7).
HISTORY_KEYS = [int(k) for k in GOOD.events["click"]["history_key"]]
CLICK_TIMES = [int(t) for t in GOOD.events["click"]["time_ms"]]
KEY_STEP = next(i for i in range(155, 300) if HISTORY_KEYS[i] > HISTORY_KEYS[i - 1])
TIME_STEP = next(
    i for i in range(155, 300) if HISTORY_KEYS[i] == HISTORY_KEYS[i - 1] and CLICK_TIMES[i] > CLICK_TIMES[i - 1]
)
FIRST_TIME = int(GOOD.examples["train"]["request_time_ms"][0])


def place(file: str, row: int, name: str) -> str:
    return f"{file}: row group {row // 7}, row {row}, column '{name}': "


BAD_VALUES = {
    "null": (column("user", 40, None), place(TRAIN_1, 10, "user") + "value null; there must be a value in every row"),
    "null in a list": (
        column("tags", 40, [1, None]),
        place(TRAIN_1, 10, "tags") + "value null; there must be a value in every row",
    ),
    "null list": (column("tags", 40, None), place(TRAIN_1, 10, "tags") + "value null"),
    "null key": (column("user_name", 40, None), place(TRAIN_1, 10, "user_name") + "value null"),
    "NaN": (column("price", 40, float("nan")), place(TRAIN_1, 10, "price") + "value nan; values must be finite"),
    "infinite": (column("price", 5, float("-inf")), place(TRAIN_0, 5, "price") + "value -inf; values must be finite"),
    "beyond float32": (
        column("price", 5, 1e39),
        place(TRAIN_0, 5, "price") + "value 1e+39; values must be at most 1e+18 in magnitude",
    ),
    "too large": (
        column("price", 5, -1.1e18),
        place(TRAIN_0, 5, "price") + "value -1.1e+18; values must be at most 1e+18 in magnitude",
    ),
    "too large in an event": (
        event_column("seconds", 200, 1.1e18),
        place(CLICK_1, 50, "seconds") + "value 1.1",
    ),
    "null label without a policy": (
        column("rated", 5, None),
        place(TRAIN_0, 5, "rated") + 'value null; there must be a value in every row, or schema.json "nulls": '
        '{"rated": "masked"}, and the row counts nothing for this task',
    ),
    "NaN label": (column("rated", 5, float("nan")), place(TRAIN_0, 5, "rated") + "value nan; values must be finite"),
    "negative id": (column("item", 40, -7), place(TRAIN_1, 10, "item") + "value -7; ids must be 0 or more"),
    "negative id in a list": (column("words", 40, [3, -2]), place(TRAIN_1, 10, "words") + "value -2; ids must be 0"),
    "label above 1": (column("bought", 40, 2), place(TRAIN_1, 10, "bought") + "value 2.0; labels must lie in [0, 1]"),
    "label below 0": (column("bought", 40, -1), place(TRAIN_1, 10, "bought") + "value -1.0; labels must lie in [0, 1]"),
    "null weight": (
        column("weight", 3, None),
        place(TRAIN_0, 3, "weight")
        + "value null; there must be a value in every row; nulls of keys, times and weights",
    ),
    "negative weight": (
        column("weight", 3, -0.5),
        place(TRAIN_0, 3, "weight") + "value -0.5; weights must be 0 or more",
    ),
    "time goes backwards": (
        time_swap,
        place(TRAIN_1, 10, "request_time_ms") + f"value {FIRST_TIME - 5} after ",
    ),
    "history after request": (
        column("history_time_ms", 40, 10**12 + 5000),
        place(TRAIN_1, 10, "history_time_ms") + f"value {10**12 + 5000} with request_time_ms ",
    ),
    "microseconds": (
        column("request_time_ms", 59, 10**15),
        place(TRAIN_1, 29, "request_time_ms") + f"value {10**15}; times are milliseconds since 1970-01-01 UTC, from",
    ),
    "negative event id": (
        event_column("place", 200, -1),
        place(CLICK_1, 50, "place") + "value -1; ids must be 0 or more",
    ),
    "NaN in an event": (
        event_column("seconds", 200, float("nan")),
        place(CLICK_1, 50, "seconds") + "value nan; values must be finite",
    ),
    "null event time": (event_column("time_ms", 200, None), place(CLICK_1, 50, "time_ms") + "value null"),
    "events not sorted by key": (
        event_swap(KEY_STEP - 1, KEY_STEP),
        place(CLICK_1, KEY_STEP - 150, "history_key")
        + f"value {HISTORY_KEYS[KEY_STEP - 1]} after {HISTORY_KEYS[KEY_STEP]}; "
        + "events must be sorted by (history_key, time_ms)",
    ),
    "events not sorted by time": (
        event_swap(TIME_STEP - 1, TIME_STEP),
        place(CLICK_1, TIME_STEP - 150, "time_ms")
        + f"value {CLICK_TIMES[TIME_STEP - 1]} after {CLICK_TIMES[TIME_STEP]} of the same history_key "
        + f"{HISTORY_KEYS[TIME_STEP]}; events must be sorted by (history_key, time_ms)",
    ),
    "text where ids belong": (
        typed("item", pa.string()),
        f"{TRAIN_0}: column 'item': its type is string; it must be an integer type such as int64",
    ),
    "float ids": (
        typed("user", pa.float64()),
        f"{TRAIN_0}: column 'user': its type is double; it must be an integer type such as int64",
    ),
    "numbers where lists belong": (
        lambda tables: tables.examples["train"].update(tags=tables.examples["train"]["user"]),
        f"{TRAIN_0}: column 'tags': its type is int64; it must be a list of integers such as list<int64>",
    ),
    "text where floats belong": (
        typed("price", pa.string()),
        f"{TRAIN_0}: column 'price': its type is string; it must be a float or integer type such as float32",
    ),
    "float key": (
        lambda tables: tables.examples["train"].update(request=np.linspace(0, 1, 60)),
        f"{TRAIN_0}: column 'request': its type is double; it must be an integer or string type",
    ),
    "id beyond int64": (
        lambda tables: tables.examples["train"].update(user=pa.array([2**63] + [0] * 59, pa.uint64())),
        place(TRAIN_0, 0, "user") + f"value {2**63}; values must be below {2**63}",
    ),
    "time beyond int64": (
        lambda tables: tables.examples["train"].update(
            request_time_ms=pa.array([*GOOD.examples["train"]["request_time_ms"][:59].tolist(), 2**63 + 5], pa.uint64())
        ),
        place(TRAIN_1, 29, "request_time_ms") + f"value {2**63 + 5}; times are milliseconds since 1970-01-01 UTC, from",
    ),
    "no weight at all": (
        column("weight", 0, 0.0, rows=60),
        "examples/train: column 'weight': all weights are 0; some row must count",
    ),
    "only clicks": (
        column("bought", 0, 1, rows=60),
        "examples/train: column 'bought': the mean label of the training split is 1.0; NE needs it strictly between",
    ),
    "key of two types": (
        lambda tables: tables.examples["test"].update(user_name=np.arange(60)),
        "examples/test/part-0.parquet: column 'user_name': this key is text in some files and whole numbers in others",
    ),
} | {
    f"missing column {name}": (
        without(name),
        f"{TRAIN_0}: column '{name}': there is no such column, only [",
    )
    for name in ("user", "tags", "price", "rated", "request_time_ms", "history_key", "user_name")
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_values_are_named(case, tmp_path):
    change, message = BAD_VALUES[case]
    tables = copy.deepcopy(GOOD)
    change(tables)
    check(tables.write(tmp_path / "data"), tmp_path / "cache", message)


def renamed(old: str, new: str) -> Tables:
    """The tables, whose examples have a column under another name."""
    tables = copy.deepcopy(GOOD)
    for columns in tables.examples.values():
        columns[new] = columns.pop(old)
    return tables


@pytest.mark.parametrize("name", ["weights", "weight_", "_weight", "Weight", "WEIGHTS", "wieght", "weigth", "wight"])
def test_weights_under_nearly_their_name_are_not_left_out_without_a_word(name, tmp_path):
    message = f"{TRAIN_0}: column {name!r}: its name is nearly 'weight', an optional column; give it that name"
    check(renamed("weight", name).write(tmp_path / "data"), tmp_path / "cache", message)


def test_nor_are_other_optional_columns_and_what_only_resembles_them_is_no_error(tmp_path):
    root = renamed("history_time_ms", "historyTime_ms").write(tmp_path / "near")
    check(root, tmp_path / "cache", f"{TRAIN_0}: column 'historyTime_ms': its name is nearly 'history_time_ms'")
    for number, (old, name) in enumerate(
        [("weight", "height"), ("weight", "freight"), ("weight", "weight_kg"), ("history_time_ms", "history_items")]
    ):
        assert open_dataset(renamed(old, name).write(tmp_path / f"far{number}"), tmp_path / "cache")


def masked(tables: Tables, *tasks: str) -> Tables:
    """The tables, in which labels of `tasks` may be null."""
    schema = dataclasses.replace(tables.schema, nulls=tuple((task, "masked") for task in tasks))
    return dataclasses.replace(copy.deepcopy(tables), schema=schema)


def test_a_task_without_any_label_to_train_on_is_refused(tmp_path):
    tables = masked(GOOD, "rated")
    tables.examples["train"]["rated"] = pa.array([None] * 60, pa.float32())
    message = "examples/train: column 'rated': no row of the training split with weight has a label"
    check(tables.write(tmp_path / "data"), tmp_path / "cache", message)


@pytest.mark.parametrize("weights", [True, False])
def test_nor_is_it_the_weights_where_it_is_the_only_task(weights, tmp_path):
    tables = copy.deepcopy(GOOD)
    tables.schema = dataclasses.replace(GOOD.schema, tasks=("rated",), nulls=(("rated", "masked"),))
    tables.examples["train"]["rated"] = pa.array([None] * 60, pa.float32())
    for columns in tables.examples.values() if not weights else ():
        del columns["weight"]
    message = "examples/train: column 'rated': no row of the training split with weight has a label"
    check(tables.write(tmp_path / "data"), tmp_path / "cache", message)


def test_nan_is_no_null(tmp_path):
    """It may come from anywhere, while a null was written on purpose."""
    tables = masked(GOOD, "rated")
    column("rated", 5, None)(tables)
    column("rated", 40, float("nan"))(tables)
    check(tables.write(tmp_path / "data"), tmp_path / "cache", place(TRAIN_1, 10, "rated") + "value nan")


def test_the_summary_tells_how_many_labels_are_missing(tmp_path, capsys):
    tables = masked(GOOD, "rated")
    column("rated", 5, None, rows=15)(tables)
    root = tables.write(tmp_path / "data")
    assert main([str(root), "--cache", str(tmp_path / "cache")]) == 0
    printed = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in printed.splitlines() if line}
    train, rest = GOOD.examples["train"], np.r_[0:5, 20:60]
    mean = np.average(train["rated"][rest], weights=train["weight"][rest])
    assert "without rated" in printed
    assert lines["train"][6:] == [lines["train"][6], f"{mean:.4f}", "25.00%"]
    assert lines["valid"][-1] == "0.00%"


def check(root: Path, cache: Path, message: str) -> None:
    """The validator finds exactly this kind of problem, and `open_dataset` says the same; nothing is cached."""
    problems, dataset = validate(root, cache)
    assert dataset is None
    texts = [str(problem).removeprefix(f"{root}/") for problem in problems]
    kinds = {problem.kind for problem in problems}
    assert len(kinds) == 1, texts
    assert any(text.startswith(message) for text in texts), (message, texts)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        open_dataset(root, cache)
    assert str(caught.value).startswith(f"{root}/{message}")
    assert not cache.exists() or list(cache.glob("*/")) == []


def truncate(root: Path) -> None:
    data = (root / CLICK_1).read_bytes()
    (root / CLICK_1).write_bytes(data[: len(data) // 2])


def flip_page(root: Path) -> None:
    """Damages the data of the first row group, as a bad disk would; the file has checksums."""
    path = root / TRAIN_0
    options = {"write_page_checksum": True, "compression": "none", "use_dictionary": False}
    pq.write_table(pq.read_table(path), path, row_group_size=7, **options)
    data = bytearray(path.read_bytes())
    start = data.find(np.array(GOOD.examples["train"]["request_time_ms"][:7]).tobytes()[:16])
    assert start > 0
    data[start] ^= 0xFF
    path.write_bytes(bytes(data))


def no_rows(root: Path) -> None:
    for path in (root / "examples" / "valid").iterdir():
        pq.write_table(pq.read_table(path).slice(0, 0), path)


def extra_type(root: Path) -> None:
    shutil.copytree(root / "events" / "click", root / "events" / "order")


def wrong_schema(root: Path) -> None:
    text = (root / "schema.json").read_text()
    (root / "schema.json").write_text(text.replace('"size": 5', '"size": "five"'))


def twice(path: str, name: str) -> Callable[[Path], None]:
    """Adds a column of a name that is there, with other values."""

    def change(root: Path) -> None:
        table = pq.read_table(root / path)
        other = pa.array(np.arange(table.num_rows))
        pq.write_table(table.append_column(name, other), root / path, row_group_size=7)

    return change


BAD_FILES = {
    "a feature twice": (twice(TRAIN_1, "item"), f"{TRAIN_1}: column 'item': there are 2 columns of this name; rename"),
    "a weight twice": (twice(TRAIN_0, "weight"), f"{TRAIN_0}: column 'weight': there are 2 columns of this name"),
    "a key twice": (twice(CLICK_1, "history_key"), f"{CLICK_1}: column 'history_key': there are 2 columns of this"),
    "truncated": (truncate, f"{CLICK_1}: cannot be read ("),
    "not Parquet": (lambda root: (root / TRAIN_0).write_text("id,label\n1,0\n"), f"{TRAIN_0}: cannot be read ("),
    "empty file": (lambda root: (root / TRAIN_0).write_bytes(b""), f"{TRAIN_0}: the file has 0 bytes; write it again"),
    "no rows": (no_rows, "examples/valid: it has no rows; write some, or remove the folder"),
    "no files": (
        lambda root: [path.unlink() for path in (root / "examples" / "valid").iterdir()],
        "examples/valid: no *.parquet file in this folder; one without rows is enough",
    ),
    "no train split": (
        lambda root: shutil.rmtree(root / "examples" / "train"),
        "examples: no folder 'train', only ['test', 'valid']; examples of the training split belong there",
    ),
    "no examples": (
        lambda root: shutil.rmtree(root / "examples"),
        "examples: no folder 'train', only []",
    ),
    "no events folder": (
        lambda root: shutil.rmtree(root / "events" / "like"),
        "events/like: no such folder; Parquet files of the schema's event type belong there",
    ),
    "unknown event type": (
        extra_type,
        "events/order: the schema has no event type 'order', it has ['click', 'like']; add it to schema.json",
    ),
    "no schema": (
        lambda root: (root / "schema.json").unlink(),
        "schema.json: no such file; a data set needs a schema.json in its root folder",
    ),
    "wrong schema": (
        wrong_schema,
        "schema.json: schema.categorical[0].size is 'five'; it must be a whole number",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_named(case, tmp_path):
    damage, message = BAD_FILES[case]
    root = GOOD.write(tmp_path / "data")
    damage(root)
    check(root, tmp_path / "cache", message)


def test_a_damaged_page_is_found_by_its_checksum(tmp_path):
    root = GOOD.write(tmp_path / "data")
    flip_page(root)
    check(root, tmp_path / "cache", f"{TRAIN_0}: row group 0: cannot be read (")


def test_no_data_set_at_all(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder; give the one that holds"):
        open_dataset(tmp_path / "nowhere", tmp_path / "cache")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (Schema("s", (Categorical("weight", 3),)), "schema.json: column 'weight': 'weight' is a feature or task"),
        (
            Schema("s", (), events=(EventType("e", (Categorical("time_ms", 3),)),)),
            "schema.json: column 'time_ms': 'time_ms' is a field of event type 'e'",
        ),
        (
            Schema("s", (), dense=("price", "price_is_null"), nulls=(("price", "indicator"),)),
            'schema.json: with NAME_is_null beside each column NAME whose nulls are an "indicator", column names must '
            "be unique; ['price_is_null'] appear more than once; rename yours",
        ),
        (
            Schema("s", (), events=(EventType("e", (), ("a", "a_is_null")),), nulls=(("e.a", "indicator"),)),
            "indicator\", field of event type 'e' names must be unique; ['a_is_null'] appear more than once",
        ),
        (Schema("s", (), events=(EventType("../e", ()),)), "schema.json: event type '../e' must be usable as a folder"),
        (Schema("s", (Categorical("a", 2**31),)), "schema.json: table 'a' has 2147483649 rows; table rows are int32"),
    ],
)
def test_schemas_that_cannot_work_are_named(schema, message, tmp_path):
    root = Tables({"train": {"request_time_ms": [1], "label": [1]}}, {}, schema).write(tmp_path / "data", files=1)
    with pytest.raises(DataError, match=re.escape(message)):
        open_dataset(root, tmp_path / "cache")


def test_a_column_twice_that_nobody_reads_is_no_problem(tmp_path):
    root = GOOD.write(tmp_path / "data")
    for _ in range(2):
        twice(TRAIN_0, "more")(root)
    assert open_dataset(root, tmp_path / "cache")


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path, capsys):
    root = GOOD.write(tmp_path / "data")
    assert main([str(root), "--cache", str(root / "schema.json")]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"error: [Errno 17] File exists: '{root / 'schema.json'}'\n" and not printed.out


def test_all_problems_are_listed_once_with_their_count(tmp_path, capsys):
    tables = copy.deepcopy(GOOD)
    for change in (
        column("bought", 3, 2, rows=12),
        column("price", 20, float("nan")),
        column("bought", 50, 7),
        event_column("item", 200, -4),
        without("tags"),
    ):
        change(tables)
    root = tables.write(tmp_path / "data")
    write_table(root / "events" / "order", GOOD.events["like"])
    problems, _ = validate(root, tmp_path / "cache")
    found = {(p.kind, p.file.relative_to(root).as_posix(), p.column): p.count for p in problems}
    assert found == {
        ("unknown event type", "events/order", ""): 1,
        ("negative id", CLICK_1, "item"): 1,
        ("missing column", TRAIN_0, "tags"): 1,
        ("missing column", TRAIN_1, "tags"): 1,
        ("label out of range", TRAIN_0, "bought"): 12,
        ("label out of range", TRAIN_1, "bought"): 1,
        ("not a number", TRAIN_0, "price"): 1,
    }
    assert main([str(root), "--cache", str(tmp_path / "cache")]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[:-1] == [str(problem) for problem in problems]
    assert f"{root}/{place(TRAIN_0, 3, 'bought')}value 2.0; labels must lie in [0, 1] (12 of this kind here)" in printed
    assert printed[-1] == f"{root}: 7 problems; docs/own_data.md has the rules"


def test_a_key_that_is_also_a_feature_of_the_wrong_type(tmp_path):
    schema = Schema("s", (Categorical("user", 5),), keys=("user",), allow=("relative_times",))
    columns = {"request_time_ms": [1, 2], "label": [0, 1], "user": ["a", "b"]}
    root = Tables({"train": columns}, {}, schema).write(tmp_path / "data", files=1)
    problems, _ = validate(root, tmp_path / "cache")
    assert [str(p) for p in problems] == [
        f"{root / TRAIN_0}: column 'user': its type is string; it must be an integer type such as int64; "
        'cast it, as pyarrow.compute.cast(column, "int64"), or say "vocabulary": true of this feature in schema.json'
    ]


def test_the_summary_counts(tmp_path, capsys):
    root = GOOD.write(tmp_path / "data")
    assert main([str(root), "--cache", str(tmp_path / "cache")]) == 0
    printed = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in printed.splitlines() if line}
    train = GOOD.examples["train"]
    mean = np.average(train["bought"], weights=train["weight"])
    assert lines["train"][1] == "60"
    assert lines["train"][2:4] == ["2001-09-09", "01:46:40"]
    assert lines["train"][6] == f"{mean:.4f}"
    items = GOOD.events["click"]["item"]
    beyond = int(np.sum(items >= 7))
    assert lines["click.item"][1:] == ["7", "hash", "300", str(beyond), f"{beyond / 300:.2%}"]
    tags = [tag for split in GOOD.examples.values() for row in split["tags"] for tag in row]
    assert lines["tags"][3:5] == [str(len(tags)), str(sum(tag >= 4 for tag in tags))]
    dataset = open_dataset(root, tmp_path / "cache")
    lengths = dataset.source.history_lengths(np.arange(180), "click")
    quantiles = [f"{np.quantile(lengths, q):.0f}" for q in (0.5, 0.9, 0.99, 1)]
    assert lines["click"][1] == "300"
    assert lines["click"][6:] == [f"{np.mean(lengths == 0):.2%}", *quantiles]


def test_a_summary_needs_parquet(tmp_path):
    dataset = open_dataset(GOOD.write(tmp_path / "data"), tmp_path / "cache")
    other = Dataset(_Other(), dataset.splits, dataset.p_train, "none")  # type: ignore
    with pytest.raises(TypeError, match="only Parquet data has a summary, not a _Other"):
        summary(other)


class _Other:
    schema = GOOD.schema
