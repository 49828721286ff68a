"""A flat log of any look becomes a data set whose rows and histories are the log's, or is refused by column and row."""

import bz2
import gzip
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from kunlun_jax.data.import_csv import main
from kunlun_jax.data.parquet.learned import read_learned
from kunlun_jax.data.parquet.source import open_dataset

HEADER = 'user_id,"shown item",ts,device,brand,price,clicked,bought'
LINES = (
    "anna,0017,2026-01-05 08:00:00,phone,acme,9.90,1,0",
    "ben,0042,2026-01-05 08:05:00,desktop,zeta,,0,",
    "anna,0042,2026-01-05 09:00:00,phone,zeta,19.00,0,",
    "carl,0017,2026-01-05 09:30:00,,acme,9.90,1,1",
    'anna,"0,99",2026-01-06 08:00:00,phone,,5.00,1,0',
    "ben,0017,2026-01-06 08:10:00,desktop,acme,9.90,0,",
    "carl,0042,2026-01-06 10:00:00,tablet,zeta,19.00,0,",
    'ben,"0,99",2026-01-07 07:00:00,desktop,,5.00,1,1',
    "anna,0017,2026-01-07 08:00:00,phone,acme,9.90,0,",
    'carl,"0,99",2026-01-07 09:00:00,phone,,5.00,1,0',
    "ben,0042,2026-01-08 08:00:00,desktop,zeta,18.00,0,",
    "anna,0042,2026-01-08 09:00:00,phone,zeta,18.00,1,1",
)
FLAGS = (
    *("--user", "user_id", "--item", "shown item", "--time", "ts", "--label", "clicked", "bought"),
    *("--item-features", "brand", "--categorical", "device", "--dense", "price"),
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KUNLUN_CACHE", str(tmp_path / "cache"))


def write(folder: Path, lines=LINES, header=HEADER) -> Path:
    path = folder / "log.csv"
    path.write_text("\n".join((header, *lines)) + "\n")
    return path


def imported(folder: Path, log: Path, *more: str, name: str = "shop"):
    assert main([str(log), str(folder / name), *FLAGS, *more]) == 0
    return open_dataset(folder / name)


def everything(dataset) -> list:
    """All rows with the text of their keys, and all histories."""
    index = np.arange(len(dataset.source))
    most = {event.name: 99 for event in dataset.schema.events}
    rows, keys = dataset.source.rows(index, most), dataset.source.keys(index)
    plain = [rows.request_time_ms, rows.categorical, rows.dense, rows.labels, rows.weights]
    histories = [part for e in rows.events.values() for part in (e.ids, e.time_ms, e.splits)]
    return [*plain, *histories, *keys.values()]


def test_twelve_lines_become_a_data_set(tmp_path, capsys):
    dataset = imported(tmp_path, write(tmp_path))
    printed = capsys.readouterr().out
    assert "python -m experiments.train kunlun/small --data.root" in printed and "0.5000" in printed
    assert {name: len(rows) for name, rows in dataset.splits.items()} == {"train": 10, "valid": 1, "test": 1}
    source = dataset.source
    keys = source.keys(np.arange(12))
    assert keys["user_id"].tolist() == [line.split(",")[0] for line in LINES]
    assert keys["shown item"].tolist()[4] == "0,99" and keys["shown item"].tolist()[0] == "0017"
    rows = source.rows(np.arange(12), {"impression": 9, "clicked": 9, "bought": 9})
    names = [feature.name for feature in dataset.schema.categorical]
    assert names == ["user_id", "shown item", "brand", "device"]
    # Of anna's last row: everything that she saw before, and what of it she clicked and bought.
    shown = rows.events["impression"]
    assert np.diff(shown.splits).tolist() == [0, 0, 1, 0, 2, 1, 1, 2, 3, 2, 3, 4]
    last = slice(*shown.splits[-2:])
    item = names.index("shown item")
    assert shown.ids[last, 0].tolist() == rows.categorical[[0, 2, 4, 8], item].tolist()
    assert np.diff(rows.events["clicked"].splits)[-1] == 2 and np.diff(rows.events["bought"].splits)[-1] == 0
    assert rows.labels[:, 0].tolist() == [1, 0, 0, 1, 1, 0, 0, 1, 0, 1, 0, 1]
    assert np.isnan(rows.labels[:, 1]).tolist() == [line.endswith(",") for line in LINES]
    assert dataset.p_train == (0.5, pytest.approx(2 / 5))
    mean = np.mean([float(line.split(",")[-3]) for line in LINES[:10] if line.split(",")[-3]])
    assert rows.dense[:2].tolist() == [[pytest.approx(9.9), 0], [pytest.approx(mean), 1]]


def compressed(path: Path, opened, ending: str) -> Path:
    out = path.with_name(path.name + ending)
    with opened(out, "wb") as file:
        file.write(path.read_bytes())
    return out


def parquet(path: Path, time) -> Path:
    options = pa_csv.ConvertOptions(column_types={"shown item": pa.string()}, strings_can_be_null=True)
    table = pa_csv.read_csv(path, convert_options=options)
    table = table.set_column(2, "ts", table["ts"].cast(time))
    pq.write_table(table, path.with_name("log.parquet"))
    return path.with_name("log.parquet")


TIMES = [line.split(",")[-6] for line in LINES]
SECONDS = [int(np.datetime64(time, "s").astype(int)) for time in TIMES]


def with_times(times) -> list[str]:
    return [line.replace(old, str(new)) for line, old, new in zip(LINES, TIMES, times, strict=True)]


def booleans(line: str) -> str:
    user_to_price, clicked, bought = line.rsplit(",", 2)
    return f"{user_to_price},{'True' if clicked == '1' else 'false'},{bought}"


SPELLINGS = {
    "gz": lambda folder: (compressed(write(folder), gzip.open, ".gz"),),
    "bz2": lambda folder: (compressed(write(folder), bz2.open, ".bz2"),),
    "seconds": lambda folder: (write(folder, with_times(SECONDS)), "--time-unit", "s"),
    "milliseconds": lambda folder: (write(folder, with_times([1000 * t for t in SECONDS])),),
    "floats of seconds": lambda folder: (write(folder, with_times([f"{t}.0" for t in SECONDS])), "--time-unit", "s"),
    "a zone": lambda folder: (write(folder, with_times([f"{time}Z" for time in TIMES])),),
    "another zone": lambda folder: (
        write(folder, with_times([f"{np.datetime64(time) + np.timedelta64(330, 'm')}+05:30" for time in TIMES])),
    ),
    "other order": lambda folder: (write(folder, LINES[::-1]),),
    "Windows": lambda folder: (write(folder, [f"{line}\r" for line in LINES], HEADER + "\r"),),
    "true and false": lambda folder: (write(folder, [booleans(line) for line in LINES]),),
    "tabs": lambda folder: (
        write(folder, [re.sub(r"\t99", ",99", line.replace(",", "\t")) for line in LINES], HEADER.replace(",", "\t")),
        *("--delimiter", "\t"),
    ),
    "Parquet": lambda folder: (parquet(write(folder), pa.timestamp("us")),),
    "Parquet of another zone": lambda folder: (parquet(write(folder), pa.timestamp("s", "Asia/Kolkata")),),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_other_spellings_are_the_same_data(case, tmp_path):
    expected = everything(imported(tmp_path, write(tmp_path), name="plain"))
    log, *flags = SPELLINGS[case](tmp_path)
    got = everything(imported(tmp_path, log, *flags, name="other"))
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def changed(number: int, old: str, new: str) -> list[str]:
    assert old in LINES[number]
    return [line.replace(old, new) if i == number else line for i, line in enumerate(LINES)]


WRONG = {
    "no such column": (
        LINES,
        ("--dense", "prize"),
        "there is no column 'prize', only ['user_id',.*did you mean 'price'",
    ),
    "two purposes": (LINES, ("--dense", "brand"), "columns ['brand'] are named for two purposes"),
    "shares": (LINES, ("--splits", "0.9", "0.2", "0.1"), "splits is (0.9, 0.2, 0.1)"),
    "minimum": (LINES, ("--min-count", "0"), "min-count is 0; it must be at least 1"),
    "no rows": ((), (), "it has no rows below its header"),
    "a user is missing": (changed(3, "carl", ""), (), "column 'user_id' is empty in data row 4"),
    "a time is missing": (changed(3, TIMES[3], ""), (), "column 'ts' is empty in data row 4"),
    "a time in words": (
        changed(3, "2026-01-05 09:30:00", "yesterday"),
        (),
        "column 'ts' is 'yesterday' in data row 4; write whole numbers",
    ),
    "the first time in words": (changed(0, TIMES[0], "n/a"), (), "column 'ts' is 'n/a' in data row 1; write"),
    "the last time in words": (changed(11, TIMES[11], "n/a"), (), "column 'ts' is 'n/a' in data row 12; write"),
    "two kinds of times": (
        with_times([*TIMES[:7], *SECONDS[7:]]),
        (),
        f"column 'ts' is '{SECONDS[7]}' in data row 8; write",
    ),
    "half a second": (
        with_times([f"{t}.0" for t in SECONDS[:5]] + [f"{t}.5" for t in SECONDS[5:]]),
        (),
        f"column 'ts' is '{SECONDS[5]}.5' in data row 6; write",
    ),
    "a column twice": (
        [f"{line},x" for line in LINES],
        (),
        "there are 2 columns 'device'; rename all but one",
    ),
    "a price in words": (changed(3, "9.90", "cheap"), (), "column 'price' must hold numbers.*cheap"),
    "a label of 2": (changed(3, ",1,1", ",2,1"), (), "column 'clicked' is 2.0 in data row 4; labels lie in [0, 1]"),
    "a line too short": ([*LINES, "anna,0017"], (), "it is no CSV file with ',' between its fields"),
    "seconds for milliseconds": (with_times(SECONDS), (), '"time_unit": "s"'),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case, tmp_path, capsys):
    lines, flags, message = WRONG[case]
    header = HEADER + ",device" * (case == "a column twice")
    code = main([str(write(tmp_path, lines, header)), str(tmp_path / "shop"), *FLAGS, *flags])
    assert code in (1, 2)
    pattern = ".*".join(re.escape(part) for part in message.split(".*"))
    assert re.search(pattern, capsys.readouterr().err)
    assert code == 1 or not (tmp_path / "shop").exists()
    assert not list(tmp_path.glob(".shop-*"))


def of_a_parquet_log(folder: Path, columns: list[str], *flags: str) -> int:
    """The command's exit status for a log in which a column of lists may stand for another."""
    table = pa_csv.read_csv(write(folder))
    lists = pa.array([[1, 2]] * len(LINES))
    table = pa.table([table[name] if name in table.column_names else lists for name in columns], names=columns)
    pq.write_table(table, folder / "log.parquet")
    return main([str(folder / "log.parquet"), str(folder / "shop"), *flags])


def test_columns_of_a_parquet_log_that_cannot_be_read_are_named(tmp_path, capsys):
    names = ["user_id", "shown item", "ts", "clicked"]
    flags = ("--user", "user_id", "--item", "shown item", "--time", "ts", "--label")
    for more, label, message in (
        (["clicked"], "clicked", "log.parquet: there are 2 columns 'clicked'; rename all but one"),
        (["tags"], "tags", "log.parquet: column 'tags' must hold text or numbers, one in each row, not list<"),
    ):
        assert of_a_parquet_log(tmp_path, [*names, *more], *flags, label) == 2
        assert message in capsys.readouterr().err
    assert of_a_parquet_log(tmp_path, [*names, "tags"], *flags, "clicked", "--categorical", "tags") == 2
    assert "log.parquet: column 'tags' must hold text or numbers" in capsys.readouterr().err
    (tmp_path / "log.parquet").write_bytes(b"PAR1 and no more")
    assert main([str(tmp_path / "log.parquet"), str(tmp_path / "shop"), *flags, "clicked"]) == 2
    assert "log.parquet: it cannot be read as Parquet" in capsys.readouterr().err
    assert not (tmp_path / "shop").exists()


def test_a_folder_or_cache_that_cannot_be_made_is_one_line(tmp_path, monkeypatch, capsys):
    log = write(tmp_path)
    assert main([str(log), str(log / "shop"), *FLAGS]) == 2
    assert f"error: [Errno 17] File exists: '{log}'" in capsys.readouterr().err
    monkeypatch.setenv("KUNLUN_CACHE", str(log))
    assert main([str(log), str(tmp_path / "shop"), *FLAGS]) == 2
    assert f"error: [Errno 17] File exists: '{log}'" in capsys.readouterr().err


@pytest.mark.parametrize("impressions", [True, False])
def test_the_values_with_rows_of_their_own_are_those_that_the_vocabulary_counts_often_enough(impressions, tmp_path):
    """They are counted by hand: rows of train, and events before the last of them, which is of ben."""
    lines = [f"{user},{item},{second},{click}" for second, (user, item, click) in enumerate(
        [("anna", "a", 0)] * 5 + [("ben", "b", 1)] * 4 + [("anna", "c", 1)] * 2 + [("ben", "d", 0)] * 2
        + [("ben", "b", 1), ("anna", "e", 0), ("anna", "e", 1)]
    )]  # fmt: skip
    log = write(tmp_path, lines, "user,item,ts,clicked")
    flags = ["--user", "user", "--item", "item", "--time", "ts", "--label", "clicked", "--time-unit", "s"]
    flags += ["--min-count", "6", "--allow", "relative_times", "--splits", "0.875", "0.125", "0"]
    flags += [] if impressions else ["--no-impressions"]
    assert main([str(log), str(tmp_path / "shop"), *flags]) == 0
    dataset = open_dataset(tmp_path / "shop")
    assert {name: len(rows) for name, rows in dataset.splits.items()} == {"train": 14, "valid": 2}
    # a 5 rows and impressions, b 5 rows and 4 of each event, c 2 of everything, d 2 rows and impressions.
    counts = {"a": 10, "b": 13, "c": 6, "d": 4} if impressions else {"a": 5, "b": 9, "c": 4, "d": 2}
    often = {value: count for value, count in counts.items() if count >= 6}
    sizes = {feature.name: feature.size for feature in dataset.schema.categorical}
    assert sizes == {"user": 2, "item": len(often)}
    assert dataset.learned is not None
    learned = read_learned(dataset.learned)["vocabularies"]["item"]
    table = pq.read_table(dataset.learned / learned["file"]).to_pydict()
    assert dict(zip(table["value"], table["count"], strict=True)) == often
    assert learned["left_out"] == len(counts) - len(often)


def test_a_folder_that_is_there_and_a_log_that_is_not_are_refused(tmp_path, capsys):
    assert main([str(tmp_path / "none.csv"), str(tmp_path / "shop"), *FLAGS]) == 2
    assert "none.csv: no such file" in capsys.readouterr().err
    (tmp_path / "shop").mkdir()
    assert main([str(write(tmp_path)), str(tmp_path / "shop"), *FLAGS]) == 2
    assert "this folder is there already" in capsys.readouterr().err


def test_rows_of_one_moment_stay_in_one_split(tmp_path):
    times = np.repeat(SECONDS[:3], 4)
    dataset = imported(tmp_path, write(tmp_path, with_times(times)), "--time-unit", "s", "--splits", "0.5", "0.5", "0")
    assert {name: len(rows) for name, rows in dataset.splits.items()} == {"train": 4, "valid": 8}


@pytest.mark.parametrize("purpose", ["--categorical", "--item-features", "--dense", "--label"])
def test_a_column_named_time_is_a_column_like_others(purpose, tmp_path):
    """And not the time of the rows, which has another column here."""
    numbers = purpose in ("--dense", "--label")
    values = [["0", "1"], ["morning", "evening"]][not numbers] * 6
    log = write(tmp_path, [f"{line},{value}" for line, value in zip(LINES, values, strict=True)], HEADER + ",time")
    flags = [*FLAGS[:6], "--label", "clicked", *(["time"] if purpose == "--label" else [purpose, "time"])]
    assert main([str(log), str(tmp_path / "shop"), *flags]) == 0
    found = pq.read_table(tmp_path / "shop" / "examples" / "train")
    assert found["time"].to_pylist() == [float(value) if numbers else value for value in values[:10]]
    assert (found["request_time_ms"].to_numpy() // 1000).tolist() == SECONDS[:10]
