"""What docs/extending.md promises: what one adds lies in files of one's own, and nothing else is touched."""

import dataclasses
import importlib
import json
import sys

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

MODEL = '''
"""Mean: context tokens and the mean of each history, through an MLP."""

import dataclasses

import jax.numpy as jnp

from kunlun_jax.models.system import System, SystemConfig
from kunlun_jax.nn.pooling import MeanPooling


@dataclasses.dataclass(frozen=True)
class MeanConfig(SystemConfig):
    """Sizes."""

    scale: float = 1.0
    """What the means are multiplied by."""

    def build(self, schema, **rest):
        """A new Mean."""
        return Mean(schema, self, **rest)


class Mean(System):
    """The model."""

    def __init__(self, schema, config, *, base_rate, dense_moments=None, rngs):
        super().__init__(schema, config, dense_moments=dense_moments, rngs=rngs)
        self.pool, self.scale = MeanPooling(), config.scale
        self.make_head((self.context.tokens + len(self.event_names)) * config.dim, config, base_rate, rngs)

    def __call__(self, batch, embedded, *, dropout=None):
        """Logits."""
        x, events, _ = self.inputs(batch, embedded)
        means = [self.scale * self.pool(events[name]) for name in self.event_names]
        return self.logits(jnp.concatenate([x, *means], axis=1).reshape(len(x), -1), x, dropout)

    def middle_parts(self, lengths, batch):
        """Means are next to nothing."""
        return []
'''
PRESET = '''
"""A toy: nothing to expect of it."""

from toy_mean import MeanConfig

from kunlun_jax.data.open import DataConfig
from kunlun_jax.data.pipeline import LoaderConfig
from kunlun_jax.data.sets.synthetic import SyntheticConfig
from kunlun_jax.training.config import RunConfig, TrainConfig

CONFIG = TrainConfig(
    data=DataConfig(options=SyntheticConfig(train_rows=96, valid_rows=32, test_rows=32, users=20)),
    loader=LoaderConfig(batch_size=32, max_events=8),
    model=MeanConfig(dim=8, embedding_dim=4, head_hidden=()),
    run=RunConfig(progress=False),
)
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "toy_mean.py").write_text(MODEL.lstrip())
    (tmp_path / "toy_preset.py").write_text(PRESET.lstrip())
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("toy_mean", "toy_preset"):
        sys.modules.pop(name, None)


def test_a_model_of_ones_own_is_trained_and_evaluated(folder, capsys):
    run = folder / "run"
    assert train.main([str(folder / "toy_preset.py"), "--run.dir", str(run), "--model.scale", "0.5"]) == 0
    assert "NE" in capsys.readouterr().out
    config = json.loads((run / "config.json").read_text())["config"]
    assert config["model"]["kind"] == "toy_mean.MeanConfig" and config["model"]["scale"] == 0.5
    for name in ("toy_mean", "toy_preset"):
        sys.modules.pop(name)
    assert evaluate.main(["--run.dir", str(run), "--split", "valid", "--no-progress"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 32


def test_help_shows_the_flags_of_that_model_and_data_set_alone(folder, capsys):
    with pytest.raises(SystemExit):
        train.main([str(folder / "toy_preset.py"), "--help"])
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
    with pytest.raises(ValueError, match="a module called 'json' is there already"):
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


def test_a_comparison_of_ones_own_is_run_by_its_path(folder, capsys):
    (folder / "toy_comparison.py").write_text(
        '"""One row."""\nfrom experiments.compare import Comparison\n'
        f'COMPARISON = Comparison(rows={{"mean": "{folder / "toy_preset.py"}"}}, seeds=(0,))\n'
    )
    flags = ["--dirty", "--out", str(folder / "toy.json"), "--runs", str(folder / "runs")]
    assert compare.main([str(folder / "toy_comparison.py"), *flags]) == 0
    assert "| mean |" in capsys.readouterr().out
    sys.modules.pop("toy_comparison")
