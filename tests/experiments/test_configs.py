"""Presets, and the one way to open data from flags."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

from experiments import configs
from experiments.configs import PRESETS
from kunlun_jax.data.dataset import DatasetConfig
from kunlun_jax.data.open import SETS, DataConfig, detect, open_dataset, resolve
from kunlun_jax.data.parquet.source import ParquetConfig
from kunlun_jax.data.sets.kuairand import KuaiRandConfig
from kunlun_jax.data.sets.movielens import MovieLensConfig
from kunlun_jax.data.sets.synthetic import SyntheticConfig
from kunlun_jax.serialization import from_json, to_json
from kunlun_jax.training.config import RunConfig, TrainConfig
from tests.data.parquet.parquet_sets import random_tables
from tests.data.sets import fake_kuairand, fake_movielens


def test_every_file_of_the_folder_is_a_preset():
    folder = Path(configs.__file__).parent
    files = [file for file in folder.rglob("*.py") if file.stem != "__init__"]
    assert sorted(PRESETS) == sorted(f"{file.parent.name}/{file.stem}" for file in files)
    assert {"kunlun/small", "kunlun/large", "kunlun/kuairand", "kunlun/movielens", "din/small"} <= set(PRESETS)


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_is_of_its_model_and_says_what_it_costs(name):
    module = importlib.import_module(f"experiments.configs.{name.replace('/', '.')}")
    model, _ = name.split("/")
    assert type(module.CONFIG.model).__module__ in (f"kunlun_jax.models.{model}", "kunlun_jax.models.config")
    summary, *_ = module.__doc__.splitlines()
    assert summary.endswith(".") and len(summary) > 20
    assert f"\n    python -m experiments.train {name}" in module.__doc__
    assert "Cost" in module.__doc__ and "NE" in module.__doc__


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_survives_its_config_json(name):
    config = PRESETS[name][1]
    assert from_json(TrainConfig, to_json(config)) == config


def test_large_is_like_production():
    config = PRESETS["kunlun/large"][1]
    assert config.model.dim >= 384
    assert config.loader.batch_size == 1152 and config.loader.max_events == 1000


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "run.epochs is 0; it must be at least 1"),
        ("log_every", 0, "run.log_every is 0; it must be at least 1"),
        ("checkpoint_every", -1, "run.checkpoint_every is -1; it must be at least 1"),
        ("max_steps", -1, "run.max_steps is -1; it must be at least 0"),
        ("eval_every", -5, "run.eval_every is -5; it must be at least 0"),
        ("eval_splits", (), "run.eval_splits is empty"),
    ],
)
def test_a_run_that_cannot_be_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RunConfig(), **{field: value})


CLASSES = {"parquet": ParquetConfig, "kuairand": KuaiRandConfig, "movielens": MovieLensConfig}


@pytest.fixture
def folders(tmp_path):
    """One data set of each kind, in the layout of its authors."""
    random_tables(rows=20, events=40).write(tmp_path / "parquet")
    fake_kuairand.write(tmp_path / "kuairand", fake_kuairand.make_log())
    fake_movielens.write(tmp_path / "movielens", fake_movielens.make_ratings())
    return tmp_path


@pytest.mark.parametrize("kind", ["parquet", "kuairand", "movielens"])
def test_detect_knows_each_kind(folders, kind):
    assert detect(folders / kind) is CLASSES[kind]


def test_detect_knows_a_folder_inside_the_whole_set(folders):
    (log,) = (folders / "kuairand").rglob("log_standard_4_22*_pure.csv")
    assert detect(log.parent) is KuaiRandConfig
    assert detect(folders / "movielens" / "ml-1m") is MovieLensConfig


def test_detect_refuses_two_kinds_in_one_folder(folders):
    (folders / "movielens" / "schema.json").write_text("{}")
    with pytest.raises(ValueError, match=r"data.root .* holds \['ParquetConfig', 'MovieLensConfig'\]"):
        detect(folders / "movielens")


def test_detect_refuses_a_folder_without_data(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"data.root {str(tmp_path)!r} holds no")):
        detect(tmp_path)


def test_detect_refuses_what_is_no_folder(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"data.root is {str(tmp_path / 'nowhere')!r}")):
        detect(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["parquet", "kuairand", "movielens"])
def test_open_finds_the_data_by_itself(folders, kind):
    names = {"parquet": "toy", "kuairand": "kuairand", "movielens": "movielens"}
    dataset = open_dataset(DataConfig(root=folders / kind, cache=folders / "cache"))
    assert dataset.schema.name.startswith(names[kind])
    assert {"train", "test"} <= set(dataset.splits)


@pytest.mark.parametrize("kind", ["parquet", "kuairand", "movielens"])
def test_a_config_says_what_was_opened(folders, kind):
    """So a run's config.json does, too: the options of the synthetic world are not kept beside a folder's name."""
    assert type(resolve(DataConfig(root=folders / kind)).options) is CLASSES[kind]
    assert resolve(DataConfig()) == DataConfig()


def test_options_that_are_named_stay(folders):
    config = DataConfig(root=folders / "kuairand", options=KuaiRandConfig(rates=False))
    assert resolve(config) == config
    with pytest.raises(ValueError, match="movielens"):
        open_dataset(dataclasses.replace(config, root=folders / "movielens", cache=folders / "cache"))


def test_open_without_a_root_is_the_synthetic_world():
    world = SyntheticConfig(train_rows=32, valid_rows=8, test_rows=8, users=10)
    assert open_dataset(DataConfig(options=world)).schema.name == "synthetic"


@pytest.mark.parametrize("kind", CLASSES.values())
def test_open_wants_a_root_for_files(kind, monkeypatch):
    monkeypatch.delenv("KUNLUN_DATA", raising=False)
    with pytest.raises(ValueError, match=rf"data\.root is not set; {kind.__name__} is .*: --data\.root FOLDER"):
        open_dataset(DataConfig(options=kind()))


def test_every_data_set_with_files_is_detected():
    assert {SyntheticConfig, *CLASSES.values()} == set(SETS) == set(DatasetConfig.__subclasses__())


def test_the_environment_variable_stands_in_for_the_root_of_public_data(tmp_path, monkeypatch):
    monkeypatch.setenv("KUNLUN_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=str(tmp_path)):
        open_dataset(DataConfig(options=KuaiRandConfig()))
    with pytest.raises(ValueError, match=r"data\.root is not set"):
        open_dataset(DataConfig(options=ParquetConfig()))
