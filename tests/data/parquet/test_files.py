"""Every file of a data set is read, whatever folders it lies in, or refused by its name."""

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kunlun_jax.data.parquet.files import partition
from kunlun_jax.data.parquet.report import DataError
from kunlun_jax.data.parquet.source import open_dataset
from kunlun_jax.data.schema import Categorical, EventType, Schema
from tests.data.parquet.parquet_sets import Tables, random_tables
from tests.data.parquet.test_source import assert_same

MOST = {"click": 7, "like": 1000}
INDEX = np.arange(180)


@pytest.fixture
def root(tmp_path) -> Path:
    return random_tables().write(tmp_path / "data")


def rows_of(root: Path, tmp_path: Path):
    return open_dataset(root, tmp_path / "cache").source.rows(INDEX, MOST)


def move(root: Path, old: str, new: str) -> None:
    (root / new).parent.mkdir(parents=True, exist_ok=True)
    (root / old).rename(root / new)


@pytest.mark.parametrize(
    "new",
    [
        "examples/train/part-0.PARQUET",
        "examples/train/part-0.snappy.Parquet",
        "examples/train/date=2026-01-02/part.parquet",
        "examples/train/a/b/c/part.parquet",
        "examples/train/out.parquet/part-00000-of-1.parquet",
    ],
)
def test_files_of_any_place_and_spelling_are_read(new, root, tmp_path):
    before = rows_of(root, tmp_path)
    move(root, "examples/train/part-0.parquet", new)
    assert_same(rows_of(root, tmp_path), before)


def test_what_other_programs_leave_beside_the_data_is_no_data(root, tmp_path):
    before = rows_of(root, tmp_path)
    for name in ("_SUCCESS", "._SUCCESS.crc", ".part-0.parquet.crc", "_metadata", ".DS_Store"):
        (root / "examples" / "train" / name).write_text("x")
    (root / "events" / "click" / "_temporary").mkdir()
    for folder in ("examples", "events"):
        (root / folder / "_temporary" / "0").mkdir(parents=True)
        shutil.copy(root / "examples/train/part-0.parquet", root / folder / "_temporary" / "part-0.parquet")
    (root / "README.md").write_text("notes")
    assert_same(rows_of(root, tmp_path), before)


def broken_link(root: Path) -> None:
    (root / "examples/train/part-2.parquet").symlink_to(root / "nowhere.parquet")


def loop(root: Path) -> None:
    (root / "events/click/again").symlink_to(root / "events/click")


REFUSED = {
    "another ending": (
        lambda root: move(root, "examples/train/part-1.parquet", "examples/train/part-1.parq"),
        "examples/train/part-1.parq: its name does not end in .parquet; rename it",
    ),
    "compressed": (
        lambda root: move(root, "events/like/part-1.parquet", "events/like/part-1.parquet.gz"),
        "events/like/part-1.parquet.gz: its name does not end in .parquet",
    ),
    "beside the splits": (
        lambda root: shutil.copy(root / "examples/train/part-1.parquet", root / "examples/more.parquet"),
        "examples/more.parquet: it lies beside the folders of examples; move it into one of them",
    ),
    "beside the event types": (
        lambda root: shutil.copy(root / "events/like/part-1.parquet", root / "events/more.PARQUET"),
        "events/more.PARQUET: it lies beside the folders of events",
    ),
    "a link to nothing": (broken_link, "examples/train/part-2.parquet: it is a link to nothing, or no file"),
    "a link to a folder above": (loop, "again: it lies more than 8 folders deep; is it a link to one above?"),
    "a folder with nothing": (
        lambda root: (root / "events/like/2026").mkdir(),
        "events/like/2026: no *.parquet file in this folder",
    ),
    "an empty folder with a file's name": (
        lambda root: (root / "events/like/x.parquet").mkdir(),
        "events/like/x.parquet: no *.parquet file in this folder",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_read_is_named(case, root, tmp_path):
    damage, message = REFUSED[case]
    damage(root)
    with pytest.raises(DataError, match=re.escape(message)):
        open_dataset(root, tmp_path / "cache")


HIVE = Schema(
    "hive",
    (Categorical("country", 9),),
    dense=("rate",),
    events=(EventType("click", (Categorical("shop", 5),)),),
    keys=("city",),
    allow=("relative_times",),
)


def hive(root: Path, country: str = "3", rate: str = "0.5", city: str = "New%20York", shop: str = "2") -> Path:
    """Columns that only folders spell out."""
    one = {"request_time_ms": [10, 20], "history_key": [1, 1], "label": [0, 1]}
    two = {"request_time_ms": [30], "history_key": [1], "label": [1]}
    Tables({}, {}, HIVE).write(root)
    for columns, folder in ((one, "country=1/rate=-1e3/city=a"), (two, f"country={country}/rate={rate}/city={city}")):
        path = root / "examples" / "train" / folder
        path.mkdir(parents=True)
        pq.write_table(pa.table(columns), path / "part.parquet")
    path = root / "events" / "click" / f"shop={shop}"
    path.mkdir(parents=True)
    pq.write_table(pa.table({"history_key": [1], "time_ms": [15]}), path / "part.parquet")
    return root


def test_partitions_are_columns_where_the_schema_names_them(tmp_path):
    source = open_dataset(hive(tmp_path / "data"), tmp_path / "cache").source
    rows = source.rows(np.arange(3), {"click": 9})
    assert rows.categorical.tolist() == [[1], [1], [3]]
    assert rows.dense.tolist() == [[-1000], [-1000], [0.5]]
    assert rows.events["click"].ids.tolist() == [[2], [2]]
    assert source.keys(np.arange(3))["city"].tolist() == ["a", "a", "New York"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"country": "2026-01-02"}, "column 'country': the folder's name says '2026-01-02'; it must be of an integer"),
        ({"rate": "much"}, "column 'rate': the folder's name says 'much'; it must be of a float or integer"),
        (
            {"country": "9" * 20},
            f"column 'country': the folder's name says '{'9' * 20}'; it must be of an integer type",
        ),
        ({"country": "-4"}, "row 0, column 'country': value -4; ids must be 0 or more"),
        ({"country": "__HIVE_DEFAULT_PARTITION__"}, "row 0, column 'country': value null"),
        ({"shop": "x"}, "column 'shop': the folder's name says 'x'; it must be of an integer type"),
        ({"rate": "nan"}, "row 0, column 'rate': value nan; values must be finite"),
    ],
)
def test_partitions_are_checked_like_columns(wrong, message, tmp_path):
    with pytest.raises(DataError, match=re.escape(message)):
        open_dataset(hive(tmp_path / "data", **wrong), tmp_path / "cache")


def test_a_columns_own_values_come_before_a_folders_name(root, tmp_path):
    before = rows_of(root, tmp_path)
    move(root, "examples/train/part-0.parquet", "examples/train/item=3/part-0.parquet")
    assert_same(rows_of(root, tmp_path), before)


def test_a_path_spells_its_columns_in_order():
    file = Path("/data/a=0/examples/train/date=2026-01-02/x=a%3Db/plain/=no/part.parquet")
    assert partition(file, Path("/data/a=0")) == {"date": "2026-01-02", "x": "a=b"}


def test_files_without_rows_and_types_that_nobody_has_are_no_fault(tmp_path):
    tables = random_tables()
    whole = open_dataset(tables.write(tmp_path / "whole"), tmp_path / "cache").source.rows(INDEX, MOST)
    path = tables.write(tmp_path / "data") / "examples/train/part-1.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path.with_name("part-2.parquet"))
    for file in (tmp_path / "data" / "events" / "like").iterdir():
        pq.write_table(pq.read_table(file).slice(0, 0), file)
    rows = rows_of(tmp_path / "data", tmp_path)
    assert rows.events["like"].ids.shape == (0, 1)
    assert rows.events["like"].splits.tolist() == [0] * 181
    assert_same(rows.events["click"], whole.events["click"])
