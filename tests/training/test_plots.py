import matplotlib.image
import numpy as np
import pytest

from kunlun_jax.training import json_lines, plots
from kunlun_jax.training.plots import learning_curve, running_mean


def run_lines(tasks=("",), points=200, evals=5):
    rng = np.random.default_rng(0)
    lines = []
    for index in range(1, points + 1):
        ne = 0.85 + 0.5 * np.exp(-index / 12)
        line = {"kind": "train", "step": 20 * index, "examples": 5120 * index, "loss": 0.5}
        line |= {f"{task}ne": ne + 0.01 * k + 0.02 * rng.normal() for k, task in enumerate(tasks)}
        lines.append(line | {"examples_per_second": 3200 + 150 * rng.normal()})
        if index % (points // evals) == 0:
            line = {"kind": "eval", "split": "valid", "step": 20 * index, "examples": 5120 * index, "auc": 0.7}
            lines.append(line | {f"{task}ne": ne + 0.01 for task in tasks})
    lines.append({**lines[-1], "split": "test", "ne": 0.87})
    return lines


def write(path, lines):
    path.write_text(json_lines.text_of(lines))
    return path


def drawn(monkeypatch, tmp_path, lines, floor=0.82):
    """The panels of the picture that `learning_curve` made of `lines`, and the picture."""
    figures = []
    monkeypatch.setattr(plots, "Figure", lambda **kwargs: figures.append(FIGURE(**kwargs)) or figures[-1])
    learning_curve(write(tmp_path / "metrics.jsonl", lines), tmp_path / "curve.png", floor, "a run")
    return figures[0].axes, matplotlib.image.imread(tmp_path / "curve.png")


FIGURE = plots.Figure


def labels(axes):
    return [text.get_text() for text in axes.figure.legends[0].get_texts()]


def line_named(axes, label):
    return next(line for line in axes.lines if line.get_label() == label)


def test_draws_what_the_file_says(monkeypatch, tmp_path):
    lines = run_lines()
    (top, bottom), image = drawn(monkeypatch, tmp_path, lines)
    valid = [line["ne"] for line in lines if line.get("split") == "valid"]
    assert labels(top) == ["train (smoothed)", f"valid {valid[-1]:.4f}", "test 0.8700", "floor 0.8200"]
    np.testing.assert_array_equal(line_named(top, f"valid {valid[-1]:.4f}").get_ydata(), valid)
    train = [line for line in lines if line["kind"] == "train"]
    np.testing.assert_array_equal(top.lines[0].get_xdata(), [line["examples"] for line in train])
    np.testing.assert_array_equal(top.lines[0].get_ydata(), [line["ne"] for line in train])
    np.testing.assert_array_equal(bottom.lines[0].get_ydata(), [line["examples_per_second"] for line in train])
    assert top.get_title() == "a run"
    low, high = top.get_ylim()
    assert low < 0.82 and max(valid) < high
    assert image.shape[0] > 600 and image.std() > 0.05


def test_without_floor_or_evaluation(monkeypatch, tmp_path):
    lines = [line for line in run_lines() if line["kind"] == "train"]
    (top, _), _ = drawn(monkeypatch, tmp_path, lines, floor=None)
    assert labels(top) == ["train (smoothed)"]


def test_several_tasks_have_a_curve_each(monkeypatch, tmp_path):
    (top, _), _ = drawn(monkeypatch, tmp_path, run_lines(tasks=("click/", "like/")), floor=None)
    assert [label for label in labels(top) if "train" in label] == ["click train (smoothed)", "like train (smoothed)"]
    assert len([label for label in labels(top) if "valid" in label]) == 2


def test_one_point_and_a_value_that_is_not_there(monkeypatch, tmp_path):
    lines = run_lines(points=5, evals=1)[:1]
    (top, _), _ = drawn(monkeypatch, tmp_path, [*lines, {**lines[0], "step": 40, "examples": 10240, "ne": None}])
    assert np.isnan(top.lines[0].get_ydata()[1])


def test_a_split_without_a_metric_is_named_so(monkeypatch, tmp_path):
    lines = [line | ({"ne": None} if line.get("split") == "test" else {}) for line in run_lines()]
    (top, _), _ = drawn(monkeypatch, tmp_path, lines)
    assert "test undefined" in labels(top)


def test_an_unfinished_last_line_is_left_out(tmp_path):
    path = write(tmp_path / "metrics.jsonl", run_lines(points=10))
    path.write_text(path.read_text() + '{"kind": "tra')
    learning_curve(path, tmp_path / "curve.png", None, "cut")
    assert (tmp_path / "curve.png").stat().st_size > 10_000


def test_nothing_to_draw_is_an_error(tmp_path):
    path = write(tmp_path / "metrics.jsonl", [{"kind": "eval", "split": "valid", "step": 1, "examples": 1, "ne": 1.0}])
    with pytest.raises(ValueError, match=r"metrics.jsonl has 1 lines, none of kind 'train'"):
        learning_curve(path, tmp_path / "curve.png", None, "nothing")
    assert not (tmp_path / "curve.png").exists()


def test_running_mean_looks_back_weighs_and_skips_nan():
    values, ones = np.array([1.0, 3.0, np.nan, 5.0, 7.0]), np.ones(5)
    np.testing.assert_allclose(running_mean(values, ones, 2), [1.0, 2.0, 3.0, 5.0, 6.0])
    np.testing.assert_array_equal(running_mean(values, ones, 1), values)
    np.testing.assert_allclose(running_mean(values, ones, 9), [1.0, 2.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(running_mean(values, np.array([3.0, 1.0, 1.0, 1.0, 0.5]), 2)[[1, 4]], [1.5, 17 / 3])
