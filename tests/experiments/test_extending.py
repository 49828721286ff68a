"""What docs/extending.md promises: what one adds lies in files of one's own, and nothing else is touched."""

import dataclasses
import importlib
import json
import os
import re
import shlex
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from experiments import compare, evaluate, train
from experiments.configs import PRESETS
from experiments.files import load
from kunlun_jax.data.open import DataConfig, open_dataset
from kunlun_jax.serialization import from_json, to_json
from kunlun_jax.training.config import TrainConfig
from pallas_kernels.dispatch import Implementation
from pallas_kernels.operators.seed_attention import api
from tests import processes

DOCS = (Path(__file__).resolve().parents[2] / "docs/extending.md").read_text()
FILES = {
    name: f"# {name}\n{code}" for name, code in re.findall(r"```python\n# (my_\w+\.py)\n(.*?)```", DOCS, re.DOTALL)
}
"""The files that the page shows, by name."""
LITTLE = (
    *("--data.train-rows", "96", "--data.valid-rows", "32", "--data.test-rows", "32", "--data.users", "20"),
    *("--loader.batch-size", "32", "--loader.max-events", "8", "--run.no-progress"),
    *("--model.dim", "8", "--model.embedding-dim", "4", "--model.head-hidden", "8"),
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_the_page_shows_files_to_try():
    assert list(FILES) == ["my_model.py", "my_preset.py", "my_comparison.py"]


def test_a_file_is_imported_once_and_a_changed_or_broken_one_is_told(tmp_path):
    path = tmp_path / "my_numbers.py"
    path.write_text("NUMBER = 1 / 0")
    with pytest.raises(ZeroDivisionError):
        load(path, "NUMBER", list)
    path.write_text("NUMBER = [3]")
    first, again = (load(path, "NUMBER", list)[2] for _ in range(2))
    assert first is again == [3]
    path.write_text("NUMBER = [4]")
    with pytest.raises(ValueError, match=r"my_numbers\.py: has changed since it was imported; restart Python"):
        load(path, "NUMBER", list)
    other = tmp_path / "other" / "my_numbers.py"
    other.parent.mkdir()
    other.write_text("NUMBER = [5]")
    with pytest.raises(ValueError, match="a module called 'my_numbers' already exists; rename the file"):
        load(other, "NUMBER", list)
    del sys.modules["my_numbers"]


def test_a_model_of_ones_own_is_trained_and_evaluated(folder, capsys):
    run = folder / "run"
    assert train.main([str(folder / "my_preset.py"), *LITTLE, "--run.dir", str(run), "--model.scale", "0.5"]) == 0
    assert "NE" in capsys.readouterr().out
    config = json.loads((run / "config.json").read_text())["config"]
    assert config["model"]["kind"] == "my_model.MeanConfig" and config["model"]["scale"] == 0.5
    for name in ("my_model", "my_preset"):
        sys.modules.pop(name)
    assert evaluate.main(["--run.dir", str(run), "--split", "valid", "--no-progress"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 32


def test_help_shows_the_flags_of_that_model_and_data_set_alone(folder, capsys):
    with pytest.raises(SystemExit):
        train.main([str(folder / "my_preset.py"), "--help"])
    text = capsys.readouterr().out
    assert "--model.scale" in text and "--data.train-rows" in text
    assert "--model.layers" not in text and "--data.smoothing" not in text


@pytest.mark.parametrize(
    ("text", "message"),
    [("CONFIG = 1", "must hold a kunlun_jax.training.config.TrainConfig called CONFIG"), ("", "called CONFIG")],
)
def test_a_file_that_is_no_preset_is_refused(tmp_path, text, message):
    path = tmp_path / "toy_nothing.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load(path, "CONFIG", TrainConfig)
    sys.modules.pop("toy_nothing")


def test_a_preset_that_is_not_there_exits_2(tmp_path, capsys):
    assert train.main([str(tmp_path / "mine.py")]) == 2
    assert "no such file; name a Python file that holds a TrainConfig called CONFIG" in capsys.readouterr().err


def test_a_preset_named_like_a_module_is_refused(tmp_path):
    (tmp_path / "json.py").write_text("")
    with pytest.raises(ValueError, match="a module called 'json' already exists"):
        load(tmp_path / "json.py", "CONFIG", TrainConfig)


DATA = '''
"""The synthetic world, in small."""

import dataclasses

from kunlun_jax.data.dataset import DatasetConfig
from kunlun_jax.data.sets.synthetic import SyntheticConfig, open_dataset


@dataclasses.dataclass(frozen=True)
class LittleConfig(DatasetConfig):
    """Of which world."""

    seed: int = 3
    """Seed of the world."""

    def open(self, root, cache):
        """The data set."""
        world = open_dataset(SyntheticConfig(seed=self.seed, train_rows=96, valid_rows=32, test_rows=32, users=20))
        return dataclasses.replace(world, fingerprint=f"little-{self.seed}")
'''


def test_a_data_set_of_ones_own_is_opened_by_its_config(folder):
    (folder / "toy_data.py").write_text(DATA.lstrip())
    options = importlib.import_module("toy_data").LittleConfig(seed=4)
    config = dataclasses.replace(PRESETS["din/small"][1], data=DataConfig(options=options))
    again = from_json(TrainConfig, json.loads(json.dumps(to_json(config))))
    dataset = open_dataset(again.data)
    assert dataset.fingerprint == "little-4" and (dataset.floor("valid") or 0) > 0
    sys.modules.pop("toy_data")


def test_a_backend_of_ones_own_is_a_line(monkeypatch):
    asked = []

    def toy(q, k, v, row_splits, lengths, *, scale):
        asked.append(scale)
        return jnp.zeros((len(lengths), *q.shape))

    mine = Implementation("toy", toy, lambda q: None if q.shape[1] == 2 else "only for two heads")
    monkeypatch.setattr(api, "IMPLEMENTATIONS", (mine, *api.IMPLEMENTATIONS))
    rows, splits, lengths = jnp.ones((8, 2, 4)), jnp.array([0, 8], jnp.int32), jnp.array([8], jnp.int32)
    api.seed_attention(rows, rows, rows, splits, lengths, scale=0.5)
    assert asked == [0.5]
    one = rows[:, :1]
    with pytest.raises(ValueError, match="implementation='toy' cannot run: only for two heads"):
        api.seed_attention(one, one, one, splits, lengths, implementation="toy")


def test_a_comparison_of_ones_own_is_run_by_its_path(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    path = folder / "my_comparison.py"
    path.write_text(path.read_text().replace("my_preset.py", shlex.join(["my_preset.py", *LITTLE])))
    flags = ["--dirty", "--seeds", "0", "--out", "toy.json", "--runs", "runs"]
    assert compare.main(["my_comparison.py", *flags]) == 0
    table = capsys.readouterr().out
    assert "| mean |" in table and "| half of it |" in table
    # The rows are there, so that the command has only to show it.
    root = str(Path(compare.__file__).parents[1])
    command = [sys.executable, "-m", "experiments.compare", "my_comparison.py", *flags]
    again = processes.run(command, env=os.environ | {"PYTHONPATH": root})
    assert (again.returncode, again.stdout) == (0, table), again.stderr
