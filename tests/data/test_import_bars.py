"""What a BARS board's files say is what the converted data set says, row by row and event by event."""

import collections
import dataclasses
import re
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pyarrow.parquet as pq
import pytest

from kunlun_jax.data import import_bars
from kunlun_jax.data.dataset import Dataset
from kunlun_jax.data.import_bars import Arguments, main
from kunlun_jax.data.parquet.learned import read_learned
from kunlun_jax.data.parquet.source import open_dataset
from kunlun_jax.data.schema import NULL_ID
from kunlun_jax.data.sets.bars import SETS, BarsSet
from tests.data.sets import fake_bars as fake

NAMES = list(fake.MAKERS)
Splits = dict[str, list[fake.Row]]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KUNLUN_CACHE", str(tmp_path / "cache"))


def convert(folder: Path, name: str, splits: Splits, bars: BarsSet | None = None, valid: float = 0.0) -> Dataset:
    """The opened data set of these rows, written into `folder` and converted."""
    fake.write(folder / "raw", name, splits)
    import_bars.import_bars(bars or SETS[name], folder / "raw", folder / "out", valid)
    return open_dataset(folder / "out")


def every_value(name: str) -> BarsSet:
    """The set with a table row for each value of the training rows, so that ids can be turned back into values."""
    return dataclasses.replace(SETS[name], min_count=1)


def vocabularies(dataset: Dataset) -> dict[str, list[str]]:
    """Values of each table in the order of their ids."""
    assert dataset.learned is not None
    entries = read_learned(dataset.learned)["vocabularies"]
    return {
        table: pq.read_table(dataset.learned / entry["file"])["value"].to_pylist() for table, entry in entries.items()
    }


def texts(values: list[str], ids: np.ndarray) -> list[str | None]:
    """The values that raw ids stand for: None for a null, "?" for one without a table row."""
    return [None if i == NULL_ID else values[i] if i < len(values) else "?" for i in ids.tolist()]


def parts(text: str) -> list[str]:
    return text.split("^") if text else []


@pytest.mark.parametrize("name", NAMES)
def test_every_row_and_every_history_is_that_of_the_files(tmp_path, name):
    splits, bars = fake.make(name), every_value(name)
    dataset = convert(tmp_path, name, splits, bars)
    assert {split: len(rows) for split, rows in dataset.splits.items()} == {s: len(r) for s, r in splits.items()}
    assert dataset.schema.group == bars.user
    index = np.arange(len(dataset.source))
    rows = dataset.source.rows(index, {event.name: 99 for event in dataset.schema.events})
    keys, known = dataset.source.keys(index), vocabularies(dataset)
    lines = splits["train"] + splits["test"]
    assert rows.labels[:, 0].tolist() == [float(line[bars.label]) for line in lines]
    for key in (bars.user, bars.item):
        assert keys[key].tolist() == [int(line[key]) for line in lines]
    for column, feature in enumerate(dataset.schema.categorical):
        expected = [line[feature.name] if line[feature.name] in known[feature.name] else "?" for line in lines]
        assert texts(known[feature.name], rows.categorical[:, column]) == expected
        assert "?" not in expected[: len(splits["train"])]
    for column, feature in enumerate(dataset.schema.dense):
        assert rows.dense[:, column].tolist() == [float(np.float32(line[feature])) for line in lines]
    longest = 0
    for history in bars.histories:
        events = rows.events[history.event]
        for i, line in enumerate(lines):
            mine = slice(events.splits[i], events.splits[i + 1])
            of_line = {field: parts(line[column]) for column, field in history.fields.items()}
            length = max(map(len, of_line.values()))
            # Oldest first, the newest an hour old.
            ages = (rows.request_time_ms[i] - events.time_ms[mine]) / 3_600_000
            assert ages.tolist() == list(range(length, 0, -1))
            for j, (field, values) in enumerate(of_line.items()):
                expected = [None] * (length - len(values)) + [v if v in known[field] else "?" for v in values]
                assert texts(known[field], events.ids[mine, j]) == expected
            longest = max(longest, length)
    assert longest >= 5


def test_a_brand_that_was_dropped_is_a_null_at_the_oldest_event(tmp_path):
    dataset = convert(tmp_path, "TaobaoAd_x1", fake.make("TaobaoAd_x1"))
    events = dataset.source.rows(np.arange(len(dataset.source)), {"behavior": 99}).events["behavior"]
    null = events.ids == NULL_ID
    assert null[:, 1].sum() >= 8 and not null[:, [0, 2]].any()
    assert set(np.flatnonzero(null[:, 1])) <= set(events.splits[:-1].tolist())


@pytest.mark.parametrize("name", NAMES)
def test_candidate_and_history_share_tables(tmp_path, name):
    bars = SETS[name]
    schema = convert(tmp_path, name, fake.make(name)).schema
    features = [feature.name for feature in schema.categorical]
    for history in bars.histories:
        matched = [features[column] for column, _ in schema.matches(history.event)]
        assert sorted(matched) == sorted(history.fields.values())


def distinct_histories(bars: BarsSet, lines: list[fake.Row]) -> list[fake.Row]:
    """One row for each history that there is."""
    return list({tuple(line[column] for column in bars.lists): line for line in lines}.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_history_is_stored_once_a_split(tmp_path, name):
    splits, bars = fake.make(name), SETS[name]
    convert(tmp_path, name, splits)
    different = {split: distinct_histories(bars, lines) for split, lines in splits.items()}
    for history in bars.histories:
        stored = pq.read_table(tmp_path / "out" / "events" / history.event)
        lengths = [
            max(len(parts(line[column])) for column in history.fields) for lines in different.values() for line in lines
        ]
        assert stored.num_rows == sum(lengths)
    keys = [pq.read_table(tmp_path / "out" / "examples" / split)["history_key"].to_pylist() for split in splits]
    assert [len(set(of_split)) for of_split in keys] == [len(lines) for lines in different.values()]
    assert not set(keys[0]) & set(keys[1])
    assert len(keys[0]) > len(set(keys[0]))  # some rows do share one


@pytest.mark.parametrize("name", NAMES)
def test_tables_have_a_row_for_each_frequent_value_of_the_training_rows(tmp_path, name):
    """Counted by hand: in training rows, and once in each distinct history of them."""
    splits, bars = fake.make(name), dataclasses.replace(SETS[name], min_count=8)
    dataset = convert(tmp_path, name, splits, bars)
    counts = {column: collections.Counter(line[column] for line in splits["train"]) for column in bars.categorical}
    for line in distinct_histories(bars, splits["train"]):
        for history in bars.histories:
            for column, field in history.fields.items():
                counts[field].update(parts(line[column]))
    left_out = 0
    for feature in dataset.schema.categorical:
        frequent = {value for value, count in counts[feature.name].items() if count >= 8}
        assert set(vocabularies(dataset)[feature.name]) == frequent
        assert feature.size == max(1, len(frequent))
        left_out += len(counts[feature.name]) - len(frequent)
    assert left_out > 0


def test_what_only_the_test_rows_hold_gets_no_table_row(tmp_path):
    splits = fake.make("AmazonElectronics_x1")
    splits["test"][0] |= {"item_id": "5001", "item_history": "5002^3", "cate_history": "9002^703"}
    known = vocabularies(convert(tmp_path, "AmazonElectronics_x1", splits))
    assert not {"5001", "5002"} & set(known["item_id"]) and "9002" not in known["cate_id"] and "3" in known["item_id"]


@pytest.mark.parametrize("name", NAMES)
def test_small_blocks_change_nothing(tmp_path, monkeypatch, name):
    splits = fake.make(name)
    whole = convert(tmp_path / "whole", name, splits, valid=0.3)
    groups = pq.ParquetFile(tmp_path / "whole/out/examples/train/part-00000.parquet").num_row_groups
    size = (tmp_path / "whole/raw/train.csv").stat().st_size
    monkeypatch.setattr(import_bars, "BLOCK_BYTES", size // 6)
    convert(tmp_path / "blocks", name, splits, valid=0.3)
    assert groups == 1
    assert pq.ParquetFile(tmp_path / "blocks/out/examples/train/part-00000.parquet").num_row_groups > 3
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole/out").rglob("*.parquet"))
    assert len(files) == 3 + len(whole.schema.events)
    for file in files:
        assert pq.read_table(tmp_path / "blocks" / file).equals(pq.read_table(tmp_path / "whole" / file))
    schemas = [(tmp_path / kind / "out/schema.json").read_text() for kind in ("whole", "blocks")]
    assert schemas[0] == schemas[1]


def test_the_last_training_rows_become_valid(tmp_path):
    splits = fake.make("KuaiVideo_x1")
    dataset = convert(tmp_path, "KuaiVideo_x1", splits, valid=0.25)
    assert {split: len(rows) for split, rows in dataset.splits.items()} == {"train": 90, "valid": 30, "test": 40}
    items = dataset.source.keys(np.arange(120))["item_id"]
    assert items.tolist() == [int(line["item_id"]) for line in splits["train"]]
    alone = convert(tmp_path / "alone", "KuaiVideo_x1", {"train": splits["train"][:90], "test": splits["test"]})
    assert vocabularies(dataset) == vocabularies(alone)


def changed(row: int, split: str = "train", **fields: str):
    def change(splits: Splits) -> None:
        splits[split][row] |= fields

    return change


BAD = [
    ("AmazonElectronics_x1", changed(4, label="2"), "train.csv: line 6, column 'label' is '2'; it must be 0 or 1"),
    ("AmazonElectronics_x1", changed(0, label=""), "train.csv: line 2, column 'label' is ''; it must be 0 or 1"),
    (
        "AmazonElectronics_x1",
        changed(2, "test", item_history="5^^7", cate_history="1^2^3"),
        "test.csv: line 4, column 'item_history' is '5^^7'; it must be whole numbers of at most 18 digits",
    ),
    (
        "AmazonElectronics_x1",
        changed(2, item_history="5^7", cate_history="1"),
        "train.csv: line 4, column 'cate_history' is '1'; it must be as long as the others of ['item_history', ",
    ),
    ("KuaiVideo_x1", changed(9, pos_items="1,2"), "train.csv: line 11, column 'pos_items' is '1,2'; it must be whole"),
    (
        "KuaiVideo_x1",
        changed(1, item_id="cat"),
        "train.csv: line 3, column 'item_id' is 'cat'; it must be a whole number",
    ),
    ("TaobaoAd_x1", changed(3, "test", price="nan"), "test.csv: line 5, column 'price' is 'nan'; it must be a number"),
    ("TaobaoAd_x1", changed(3, brand=""), "train.csv: line 5, column 'brand' is ''; it must be a whole number"),
]


@pytest.mark.parametrize(("name", "change", "message"), BAD)
@pytest.mark.parametrize("block", [1 << 20, 700])
def test_a_bad_value_is_refused_by_line_and_column(tmp_path, monkeypatch, name, change, message, block):
    monkeypatch.setattr(import_bars, "BLOCK_BYTES", block)
    splits = fake.make(name)
    change(splits)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        convert(tmp_path, name, splits)
    assert f"the page {name} of RecZoo's Datasets" in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]  # nothing half done is left


def test_a_history_longer_than_the_hours_between_splits_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(import_bars, "LONGEST", 3)
    with pytest.raises(ValueError, match=r"column 'item_history' is '.*'; it must be of at most 3 numbers"):
        convert(tmp_path, "AmazonElectronics_x1", fake.make("AmazonElectronics_x1"))


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def without_column(path: Path) -> None:
    path.write_text(path.read_text().replace("cate_history", "category_history", 1))


def with_short_line(path: Path) -> None:
    path.write_text(path.read_text() + "1,2\n")


def with_empty_line(path: Path) -> None:
    path.write_text(path.read_text() + "\n0,1,2,3,4,5\n")


def header_alone(path: Path) -> None:
    path.write_text(path.read_text().split("\n")[0] + "\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "train.csv: no such file; expected a CSV file with the columns ['label', 'user_id', 'item_id'"),
        (shortened, "train.csv: does not end with a line break, so it was cut off"),
        (without_column, "train.csv: its first line lacks the columns ['cate_history']; expected ['label', "),
        (with_short_line, "train.csv: is not the CSV expected: CSV parse error: Row #78: Expected 6 columns, got 2"),
        (with_empty_line, "train.csv: line 78, column 'user_id' is ''; it must be a whole number"),
        (header_alone, "train.csv: holds no rows below its header"),
    ],
)
def test_a_bad_file_is_refused_and_the_message_says_where_to_get_it(tmp_path, damage, message):
    name = "AmazonElectronics_x1"
    raw = fake.write(tmp_path / "raw", name, fake.make(name))
    damage(raw / "train.csv")
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        import_bars.import_bars(SETS[name], raw, tmp_path / "out")
    assert "page AmazonElectronics_x1 of RecZoo's Datasets" in str(raised.value)


@pytest.mark.parametrize("valid", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none_is_refused(tmp_path, valid):
    with pytest.raises(ValueError, match=re.escape(f"valid is {valid}; it must be a share of the training rows")):
        import_bars.import_bars(SETS["KuaiVideo_x1"], tmp_path, tmp_path / "out", valid)


def test_the_command(tmp_path, capsys):
    raw = fake.write(tmp_path / "raw", "KuaiVideo_x1", fake.make("KuaiVideo_x1"))
    command = ["KuaiVideo_x1", str(raw), str(tmp_path / "out")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "no_click" in printed and f"din/kuaivideo_x1 --data.root {tmp_path / 'out'}" in printed
    assert "and these {'train': 120, 'test': 40}: scores are not comparable" in printed
    assert main(command) == 2
    assert "out: this folder is there already" in capsys.readouterr().err


def test_every_set_has_a_name_on_the_command_line_and_columns_that_its_files_have():
    assert set(get_args(get_args(get_type_hints(Arguments, include_extras=True)["name"])[0])) == set(SETS) == set(NAMES)
    for name, bars in SETS.items():
        assert {bars.label, *bars.ids, *bars.dense, *bars.lists} <= set(fake.COLUMNS[name])
