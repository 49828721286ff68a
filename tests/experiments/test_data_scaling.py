"""The figures of a toy size, and that stored sizes are not measured again."""

import json

from experiments.data_scaling import COLUMNS, Config, main, markdown


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
