"""README's Python runs, on a data set of one's own."""

import dataclasses
import re
from pathlib import Path

from tests.data.parquet.parquet_sets import random_tables

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    # Sizes for seconds, and a loader whose batches the little set fills.
    code = code.replace(
        "KunlunConfig(dim=32, embedding_dim=32)", "KunlunConfig(dim=8, embedding_dim=4, layers=1, experts=1)"
    )
    code = code.replace("model=", "loader=LoaderConfig(batch_size=16, max_events=8), model=").replace(
        "import DataConfig", "import DataConfig, LoaderConfig"
    )
    tables = random_tables()
    tables.schema = dataclasses.replace(tables.schema, tasks=("bought",))
    tables.write(tmp_path / "my_data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUNLUN_CACHE", str(tmp_path / "cache"))
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert (tmp_path / "runs/mine/result.json").exists()
    tasks, ne = capsys.readouterr().out.splitlines()
    assert tasks == "('bought',)" and float(ne) > 0


def test_it_is_short():
    assert len(README.read_text().splitlines()) <= 120
