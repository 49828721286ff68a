"""Presets, and the one way to open data from flags."""

import dataclasses

import pytest

from experiments.configs import PRESETS
from kunlun_jax.config import RunConfig, TrainConfig
from kunlun_jax.data import open as opening
from kunlun_jax.data.open import DataConfig, detect, open_dataset
from kunlun_jax.data.synthetic import SyntheticConfig
from kunlun_jax.serialization import from_json, to_json
from tests.data import fake_kuairand, fake_movielens
from tests.data.parquet_sets import random_tables


def test_presets_are_named_as_their_files_and_described():
    systems = ["wukong", "interformer", "hstu", "dlrm", "dcnv2", "din", "pooled_product"]
    assert list(PRESETS) == ["small", "base", "large", "kuairand", *systems]
    for name, (summary, config) in PRESETS.items():
        assert summary.lower().startswith(name) and summary.endswith(".")
        assert isinstance(config, TrainConfig)


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_survives_its_config_json(name):
    config = PRESETS[name][1]
    assert from_json(TrainConfig, to_json(config)) == config


def test_large_is_like_production():
    config = PRESETS["large"][1]
    assert config.model.dim >= 384
    assert config.loader.batch_size == 1152 and config.loader.max_events == 1000


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "run.epochs is 0; it must be at least 1"),
        ("log_every", 0, "run.log_every is 0; it must be at least 1"),
        ("checkpoint_every", -1, "run.checkpoint_every is -1; it must be at least 1"),
        ("max_steps", -1, "run.max_steps is -1; it must be 0 or more"),
        ("eval_every", -5, "run.eval_every is -5; it must be 0 or more"),
        ("eval_splits", (), "run.eval_splits is empty"),
    ],
)
def test_a_run_that_cannot_be_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RunConfig(), **{field: value})


@pytest.fixture
def folders(tmp_path):
    """One data set of each kind, in the layout of its authors."""
    random_tables(rows=20, events=40).write(tmp_path / "parquet")
    fake_kuairand.write(tmp_path / "kuairand", fake_kuairand.make_log())
    fake_movielens.write(tmp_path / "movielens", fake_movielens.make_ratings())
    return tmp_path


@pytest.mark.parametrize("kind", ["parquet", "kuairand", "movielens"])
def test_detect_knows_each_kind(folders, kind):
    assert detect(folders / kind) == kind


def test_detect_knows_a_folder_inside_the_whole_set(folders):
    (log,) = (folders / "kuairand").rglob("log_standard_4_22*_pure.csv")
    assert detect(log.parent) == "kuairand"
    assert detect(folders / "movielens" / "ml-1m") == "movielens"


def test_detect_refuses_two_kinds_in_one_folder(folders):
    (folders / "movielens" / "schema.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds \['parquet', 'movielens'\]; say which one with --data.kind"):
        detect(folders / "movielens")


def test_detect_refuses_a_folder_without_data(tmp_path):
    with pytest.raises(ValueError, match=r"holds no data set that is known; say which one with --data\.kind"):
        detect(tmp_path)


def test_detect_refuses_what_is_no_folder(tmp_path):
    with pytest.raises(ValueError, match="it must be an existing folder"):
        detect(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["parquet", "kuairand", "movielens"])
def test_open_finds_the_data_by_itself(folders, kind):
    names = {"parquet": "toy", "kuairand": "kuairand", "movielens": "movielens"}
    dataset = open_dataset(DataConfig(root=folders / kind, cache=folders / "cache"))
    assert dataset.schema.name.startswith(names[kind])
    assert {"train", "test"} <= set(dataset.splits)


def test_open_without_a_root_is_the_synthetic_world():
    synthetic = SyntheticConfig(train_rows=32, valid_rows=8, test_rows=8, users=10)
    assert open_dataset(DataConfig(synthetic=synthetic)).schema.name == "synthetic"


def test_open_refuses_a_root_for_the_synthetic_world(tmp_path):
    with pytest.raises(ValueError, match="the synthetic world has no files; leave one out"):
        open_dataset(DataConfig(kind="synthetic", root=tmp_path))


@pytest.mark.parametrize("kind", ["parquet", "kuairand", "movielens"])
def test_open_wants_a_root_for_files(kind, monkeypatch):
    monkeypatch.delenv("KUNLUN_DATA", raising=False)
    with pytest.raises(ValueError, match=f"data.root is not set; for {kind} say --data.root FOLDER"):
        open_dataset(DataConfig(kind=kind))


def test_the_environment_variable_stands_in_for_the_root_of_public_data(tmp_path, monkeypatch):
    monkeypatch.setenv("KUNLUN_DATA", str(tmp_path))
    asked = []
    monkeypatch.setattr(opening.kuairand, "open_dataset", lambda root, cache, config: asked.append(root))
    open_dataset(DataConfig(kind="kuairand"))
    assert asked == [tmp_path]
    with pytest.raises(ValueError, match=r"for parquet say --data\.root FOLDER"):
        open_dataset(DataConfig(kind="parquet"))
