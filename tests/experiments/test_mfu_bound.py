"""`experiments.mfu_bound`: what is counted, against whole-model counts that share nothing with it."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from experiments import mfu_bound
from experiments.mfu_ladder import kunlun_of, ladder, synthetic_schema
from kunlun_jax import flops
from pallas_kernels.chips import H100

FREE = dataclasses.replace(H100, bandwidth=1e30, clock=1e30)
"""A chip on which nothing but FLOPs takes time."""
LENGTHS = {
    "impression": np.array([3, 0, 40]),
    "click": np.array([0, 17, 5]),
    "purchase": np.array([1, 1, 1]),
}
RUNGS = ladder(kunlun_of("tiny"))
LONGEST = 40


@pytest.fixture(scope="module")
def models():
    schema = synthetic_schema()

    def build(rung):
        return nnx.eval_shape(lambda: rung.model.build(schema, base_rate=(0.1,), rngs=nnx.Rngs(0)))

    return {name: build(rung) for name, rung in RUNGS.items()}


def bound(models, name, chip):
    return mfu_bound.bound(RUNGS[name], models[name], LENGTHS, LONGEST, chip)


def useful(model, lengths):
    return flops.total_flops(model.parts(lengths))


@pytest.mark.parametrize("name", ["interformer", "blocks"])
def test_where_flops_alone_count_a_padded_row_does_those_of_full_histories(models, name):
    model, full = models[name], {event: np.full(3, LONGEST) for event in LENGTHS}
    found = bound(models, name, FREE)
    assert found["useful_flops_per_example"] == pytest.approx(3 * useful(model, LENGTHS))
    assert found["mfu_bound"] == pytest.approx(useful(model, LENGTHS) / useful(model, full), rel=1e-6)


@pytest.mark.parametrize("name", ["gdpa", "hsp", "window", "compskip", "personalized"])
def test_where_flops_alone_count_a_jagged_row_computes_scores_anew(models, name):
    model = models[name]
    # Scores of all calls, counted by hand: two FLOPs a channel for each, and once more in the backward pass.
    again = 0
    for layer in model.layers:
        for event, block in layer.ffn.items():
            again += 2 * block.dim * block.width * LENGTHS[event].sum()
        for event, block in layer.pool.items():
            attention = getattr(block, "attention", block)
            again += 2 * attention.dim * attention.seeds.shape[0] * LENGTHS[event].sum()
        for event, block in layer.attention.items():
            near = [abs(i - j) <= block.window for n in LENGTHS[event] for i in range(n) for j in range(n)]
            again += 2 * block.dim * sum(near)
    whole = 3 * useful(model, LENGTHS)
    assert bound(models, name, FREE)["mfu_bound"] == pytest.approx(whole / (whole + again / 3), rel=1e-6)


def test_bytes_and_special_functions_take_time_too(models):
    for name in RUNGS:
        free, real = (bound(models, name, chip) for chip in (FREE, H100))
        assert real["mfu_bound"] < free["mfu_bound"] < 1
        assert real["most_examples_per_second"] == pytest.approx(3 / sum(real["least_seconds"].values()))
    dense = sum(p.parameters for p in models["gdpa"].parts(LENGTHS) if p.name != "tables")
    assert bound(models, "gdpa", H100)["least_seconds"]["optimizer"] == pytest.approx(28 * dense / 3.35e12)
    padded = [bound(models, name, H100)["mfu_bound"] for name in ("interformer", "blocks", "packed", "gdpa")]
    assert padded[1] < padded[2] < padded[3]


def test_command(tmp_path, capsys):
    out = tmp_path / "mfu_bound.json"
    assert mfu_bound.main(["--sizes", "tiny", "--lengths", "full", "--batch", "2", "--dirty", "--out", str(out)]) == 0
    assert "bounds, not measurements" in capsys.readouterr().out
    assert out.with_suffix(".png").stat().st_size > 10_000
