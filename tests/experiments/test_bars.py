"""A BARS board's files, written as the board has them, converted by the command, and trained on by its presets."""

import json

from experiments import train
from kunlun_jax.data import import_bars
from tests.data.sets import fake_bars

SMALL = ("--model.dim", "8", "--model.embedding-dim", "4", "--model.unit-hidden", "8", "--model.head-hidden", "8")
RUN = ("--loader.batch-size", "16", "--run.max-steps", "4", "--run.no-progress")


def test_din_trains_on_the_converted_files(tmp_path, monkeypatch):
    name = "TaobaoAd_x1"  # with nulls, several fields an event, and a dense feature
    monkeypatch.setenv("KUNLUN_CACHE", str(tmp_path / "cache"))
    splits = fake_bars.make(name)
    raw, out, run = fake_bars.write(tmp_path / "raw", name, splits), tmp_path / "out", tmp_path / "run"
    assert import_bars.main([name, str(raw), str(out)]) == 0
    where = ("--data.root", str(out), "--run.dir", str(run))
    assert train.main([f"din/{name.lower()}", *where, *SMALL, *RUN]) == 0
    test = json.loads((run / "result.json").read_text())["splits"]["test"]
    assert test["rows"] == len(splits["test"]) and test["auc"] is not None and test["logloss"] < 1
    user = import_bars.SETS[name].user
    assert test["gauc_groups"] + test["gauc_groups_excluded"] == len({line[user] for line in splits["test"]})
    assert test["gauc_groups"] > 0
