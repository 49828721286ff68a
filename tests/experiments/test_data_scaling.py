"""The figures of a toy size, and that stored sizes are not measured again."""

import json

from experiments.data_scaling import COLUMNS, Config, extrapolated, main, markdown


def test_sizes_are_measured_once_and_drawn(tmp_path, capsys):
    out = tmp_path / "data_scaling.json"
    config = Config(examples=(2000,), out=out, work=tmp_path)
    assert main(config) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["examples"] == 2000 and row["events"] == 10_000 and {*COLUMNS} < row.keys()
    assert all(row[column] >= 0 for column in COLUMNS)
    assert out.with_suffix(".png").stat().st_size > 1000
    assert markdown([row]) in capsys.readouterr().out
    before = out.read_text()
    assert main(config) == 0
    assert out.read_text() == before
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_the_last_row_grows_by_the_example_or_stays():
    rows = [{"examples": n} | dict.fromkeys(COLUMNS, 5.0) for n in (10, 1000, 3000)]
    rows[1] |= {"convert": 2.0, "read_mb": 9.0}
    rows[2] |= {"convert": 6.0, "read_mb": 7.0}
    found = extrapolated(rows, 10_000)
    assert (found["convert"], found["read_mb"], found["csv"]) == (20.0, 7.0, 5.0)
    assert markdown(rows).splitlines()[-1].startswith("| 1,000,000,000 (extrapolated) | 2,000,000.0 | 5.0 |")
    assert "extrapolated" not in markdown(rows[:1])
