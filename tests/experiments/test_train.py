"""The command line of experiments.train."""

import ast
import dataclasses
import inspect
import textwrap
import typing
from pathlib import Path

import pytest

from experiments import train
from experiments.configs import PRESETS
from kunlun_jax.data.dataset import DatasetConfig
from kunlun_jax.data.open import SETS
from kunlun_jax.data.parquet.source import ParquetConfig
from kunlun_jax.models.base import ModelConfig
from kunlun_jax.models.system import SystemConfig
from kunlun_jax.training.config import TrainConfig
from tests.models.systems import all_configs
from tests.training.tiny import tiny_config


def exit_code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as raised:
        train.main(arguments)
    assert isinstance(raised.value.code, int)
    return raised.value.code


def plain(text: str) -> str:
    """Printed help as words, without the frames and line breaks that depend on the terminal."""
    return " ".join(text.translate(str.maketrans("", "", "│╭╮╰╯─")).split())


def test_help_names_the_presets_and_what_they_are(capsys):
    assert exit_code(["--help"]) == 0
    text = plain(capsys.readouterr().out)
    for name, (summary, _) in PRESETS.items():
        assert name in text
        assert " ".join(summary.split()[:4]) in text
    assert "python -m experiments.train kunlun/small" in text


def test_help_of_a_preset_names_units_and_defaults(capsys):
    assert exit_code(["kunlun/small", "--help"]) == 0
    text = plain(capsys.readouterr().out)
    config = PRESETS["kunlun/small"][1]
    for flag, help_text, default in (
        (
            "--run.checkpoint-every",
            "Steps between checkpoints; one is also written at the end and on SIGTERM.",
            config.run.checkpoint_every,
        ),
        ("--run.max-steps", "Stops after this many steps; 0 runs all epochs.", config.run.max_steps),
        ("--loader.batch-size", "Examples per global batch, over all processes.", config.loader.batch_size),
        (
            "--model.event.window",
            "Half-width of the self-attention window, in events, inclusive.",
            config.model.event.window,
        ),
    ):
        assert flag in text
        assert f"{help_text} (default: {default})" in text
    assert "P the paper's own words, M Meta's code, R two or more readers of the paper, r one reader" in text
    assert "--data.train-rows" in text and "--data.smoothing" not in text and "--model.unit-hidden" not in text


def dataclasses_below(kind: type, found: dict[type, None] | None = None) -> list[type]:
    """A dataclass and those that its fields hold, also inside dicts and unions."""
    found = {} if found is None else found
    if dataclasses.is_dataclass(kind) and kind not in found:
        found[kind] = None
        for hint in typing.get_type_hints(kind).values():
            for part in (hint, *typing.get_args(hint)):
                dataclasses_below(part, found)
    return list(found)


def all_kinds() -> list[type]:
    """Of every model and data set, too, which a field names by its base alone."""
    found: dict[type, None] = {}
    for kind in (TrainConfig, SystemConfig, *all_configs(), *SETS):
        dataclasses_below(kind, found)
    without_fields = {ModelConfig, DatasetConfig, ParquetConfig}
    return sorted(set(found) - without_fields, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", all_kinds(), ids=lambda kind: kind.__name__)
def test_every_flag_has_a_help_text(kind):
    """The string below a field, which tyro shows beside its flag."""
    (body,) = (node.body for node in ast.parse(textwrap.dedent(inspect.getsource(kind))).body)
    annotated = [i for i, node in enumerate(body) if isinstance(node, ast.AnnAssign)]
    fields = [i for i in annotated if ast.unparse(body[i].annotation) != "ClassVar"]  # which is no flag
    flags = {field.name for field in dataclasses.fields(kind)} & inspect.get_annotations(kind).keys()
    assert len(fields) == len(flags) > 0  # those of its own; others stand where they come from
    for index in fields:
        below = body[index + 1]
        assert isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant), ast.unparse(body[index])
        assert str(below.value.value).rstrip().endswith(".")


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["kunlun/small", "--run.sead", "1"], id="unknown_flag"),
        pytest.param(["tiny"], id="unknown_preset"),
        pytest.param([], id="no_preset"),
        pytest.param(["kunlun/small", "--run.seed", "one"], id="no_number"),
    ],
)
def test_what_no_one_can_mean_exits_2(arguments, capsys):
    assert exit_code(arguments) == 2
    assert capsys.readouterr().err


def test_an_unknown_flag_is_named(capsys):
    assert exit_code(["kunlun/small", "--run.sead", "1"]) == 2
    assert "--run.sead" in plain(capsys.readouterr().err)


def test_a_folder_that_is_not_there_exits_2_and_makes_no_run(tmp_path, capsys):
    arguments = ["kunlun/small", "--data.root", str(tmp_path / "nowhere"), "--run.dir", str(tmp_path / "run")]
    assert train.main(arguments) == 2
    assert f"error: data.root is {str(tmp_path / 'nowhere')!r}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_options_of_another_data_set_beside_a_folder_are_refused(tmp_path, capsys):
    flags = ["--data.root", str(tmp_path), "--data.train-rows", "7"]
    assert train.main(["kunlun/small", *flags, "--run.dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "data.train_rows is 7, an option of SyntheticConfig, which is not read" in error and str(tmp_path) in error
    assert not (tmp_path / "run").exists()


def test_a_split_that_is_not_there_exits_2(tmp_path, capsys):
    arguments = ["kunlun/small", "--data.train-rows", "64", "--run.eval-splits", "nights"]
    assert train.main([*arguments, "--run.dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no split 'nights' in data set 'synthetic'; it has ['test', 'train', 'valid']")


def test_run_path_is_made_of_preset_data_and_seed():
    assert train.run_path("kunlun/small", tiny_config("--run.seed", "3"), "toy") == Path("runs/kunlun-small-toy-seed3")
    assert train.run_path("kunlun/small", tiny_config(directory=Path("here")), "toy") == Path("here")


def test_report_shows_each_task_and_what_is_undefined():
    values = {"auc": 0.75, "gauc": None, "logloss": 0.5, "calibration": 1.01}
    result = {
        "splits": {
            # Counts of event types and features whose names end in ne, or are it.
            "valid": {"ne": 0.9, **values, "floor": 0.8, "split": "valid", "events/done": 5, "events/ne": 7},
            "test": {f"click/{k}": v for k, v in {"ne": 0.95, **values}.items()}
            | {"buy/ne": None, "beyond_vocabulary/zone": 3},
        },
        "steps": 1234,
        "examples_per_second": 5678.9,
        "parameters": 10_000,
        "flops_per_example": 2_000_000,
        "training_flops_per_example": 6_000_000,
        "executed_flops_per_example": 8_000_000.0,
        "moved_bytes_per_step": 123_400_000.0,
        "mfu": 0.0681,
        "mfu_of": {
            "steps": [21, 1234],
            "commit": "abc",
            "peak": {
                "flops_per_second": 5e11,
                "dtype": "float32",
                "source": "measured",
                "device": "cpu",
                "devices": 1,
            },
        },
    }
    text = train.report(result, Path("run"))
    assert "valid : NE 0.9000 (floor of the data 0.8000), AUC 0.7500, gAUC undefined, LogLoss 0.5000" in text
    assert "test click: NE 0.9500, AUC 0.7500" in text
    assert "test buy: NE undefined, AUC undefined" in text
    assert text.count("NE ") == 3
    assert "1,234 steps at 5,679 examples/s" in text
    flops = "2,000,000 forward FLOPs per example (6,000,000 in training"
    assert f"10,000 parameters, {flops}, 75% of the 8,000,000 executed; a step moves 0.123 GB)" in text
    older = train.report({**result, "moved_bytes_per_step": None}, Path("run"))
    assert "75% of the 8,000,000 executed)" in older
    assert f"{flops})" in train.report({**result, "executed_flops_per_example": None}, Path("run"))
    assert "MFU 6.8% of 0.5 TFLOP/s float32 (measured) on 1 x cpu, steps 21 to 1234, commit abc" in text
    assert str(Path("run") / "learning_curve.png") in text
