"""Predicted times of loops and tiles whose clocks can be counted by hand, and against the roofline."""

import dataclasses
import math

import numpy as np
import pytest

from pallas_kernels import roofline
from pallas_kernels.chips import B200, H100
from pallas_kernels.compile_check import catalogue, predict
from pallas_kernels.compile_check.predict import Prediction, Tiling
from pallas_kernels.compile_check.sass import Loop
from pallas_kernels.compile_check.work import GDPA, Work, work
from pallas_kernels.mosaic.config import Sm90Config, Sm100Config
from pallas_kernels.operators.gdpa import shapes

FORWARD = Tiling("forward", rows=64, block=128, units=2, dim=128, issues=True)
DQ = Tiling("dq", rows=64, block=64, units=2, dim=128, issues=True)
DKV = Tiling("dkv", rows=64, block=64, units=2, dim=128, issues=True)
B200_FORWARD = Tiling("forward", rows=128, block=128, units=2, dim=128, issues=False)
RUN = {"forward": 4, "dq": 4, "dkv": 1}
TANH = Loop(64, {"mufu": 64}, {"mufu": 64})
"""One special function for each of the 64 scores that a thread has of a tile of 64 by 128."""


def predicted(loops, tiling, chip, **changes):
    """For the personalized FFN."""
    kind = Sm90Config if tiling.rows == 64 else Sm100Config
    config = kind(block=tiling.block, stages=256 // tiling.block, units=tiling.units, run=RUN[tiling.direction])
    done = work(tiling.direction, "sm90" if kind is Sm90Config else "sm100", config, GDPA)
    return predict.predict(loops, tiling, done._replace(**changes), chip)


def limit(chip, direction, activation="gelu_tanh"):
    cost = shapes.cost(np.full(1152, 1024), keys=256, heads=4, dim=128)
    return roofline.limit(cost, direction, chip, heads=4, activation=activation)


def clocks(prediction, name, chip, tile_rows):
    """Of a pipe, for a stationary tile of queries."""
    tiles = 1152 * 4 * 1024 / tile_rows / chip.multiprocessors
    return prediction.pipes[name] * chip.clock / tiles


@pytest.mark.parametrize(("chip", "tiling", "scores"), [(H100, FORWARD, 64), (B200, B200_FORWARD, 128)])
def test_where_only_special_functions_work_it_is_the_roofline(chip, tiling, scores):
    kinds = {"mufu": scores}
    found = predicted((Loop(scores, kinds, kinds),), tiling, chip)
    assert found is not None
    expected = limit(chip, "forward")
    assert found.pipes["mufu"] == pytest.approx(expected.special)
    assert found.pipes["matrix"] == pytest.approx(expected.matrix)
    assert found.pipes["memory"] == pytest.approx(expected.memory)
    assert (found.limit, found.overlapped) == ("memory", pytest.approx(expected.seconds))
    assert found.flops == expected.flops


def test_two_backward_kernels_do_fourteen_tenths_of_the_products_and_read_twice():
    loop = Loop(32, {"mufu": 32}, {"mufu": 32})
    dq, dkv = (predicted((loop,), tiling, H100) for tiling in (DQ, DKV))
    assert dq is not None and dkv is not None
    backward, forward = limit(H100, "backward"), limit(H100, "forward")
    assert dq.pipes["matrix"] + dkv.pipes["matrix"] == pytest.approx(1.4 * backward.matrix)
    assert dq.pipes["matrix"] / dkv.pipes["matrix"] == pytest.approx(6 / 8)
    # Both read q, k, v and the cotangent: together as much more than once as the forward pass reads and writes.
    assert dq.pipes["memory"] + dkv.pipes["memory"] == pytest.approx(backward.memory + forward.memory)
    assert dq.pipes["memory"] * 3.35e12 == pytest.approx(1152 * 4 * 256 * (3 * 1024 + 2 * 256))
    # Each computes the special function of every score once.
    assert dq.pipes["mufu"] == dkv.pipes["mufu"] == pytest.approx(backward.special)


@pytest.mark.parametrize(
    ("pipe", "expected"),
    [
        # Two trips and what is around them, an instruction of a warpgroup a clock at four schedulers.
        ("issue", 2 * 10 + 6),
        # One of 128 plain, one of 2 x 128 packed, and five around, 128 a clock.
        ("fma", 2 * (1 + 2) + 5),
        ("mufu", 2 * 8),
        # Two integer ones, a minimum and a conversion at half of that, and a minimum around.
        ("alu", 2 * 2 * 4 + 2),
    ],
)
def test_clocks_of_a_tile_by_hand(pipe, expected):
    kinds = {"fma": 1, "fma2": 1, "integer": 2, "minmax": 1, "convert": 1, "mufu": 1, "uniform": 3}
    # No tile is masked at full lengths.
    masked = Loop(1000, kinds | {"integer": 992}, kinds, {"fma": 5, "minmax": 1})
    found = predicted((masked,), FORWARD, H100)
    assert found is not None
    assert clocks(found, pipe, H100, 64) == pytest.approx(expected)


def test_the_products_of_another_warp_take_its_scheduler():
    score = Loop(10, {"mufu": 10}, {"mufu": 10}, {"shared": 4})
    issuing = Loop(30, {"matrix": 16, "uniform": 14}, {"uniform": 1}, {"uniform": 500})
    found = predicted((issuing, score), B200_FORWARD, B200)
    # Of two units' issuing warps each is at a scheduler of its own, where both units have a warp, too.
    assert found is not None and clocks(found, "issue", B200, 128) == pytest.approx(2 * (10 + 30 / 2) + 4)
    own = predicted((issuing, score), FORWARD, H100)
    assert own is not None and clocks(own, "issue", H100, 64) == pytest.approx(2 * 10 + 4)


def test_two_warpgroups_of_a_unit_issue_at_the_same_schedulers():
    dkv = Tiling("dkv", rows=128, block=128, units=1, dim=128, issues=False)
    alone, shared = (predicted((TANH,), t, B200) for t in (dkv, dataclasses.replace(dkv, warpgroups=2)))
    assert alone is not None and shared is not None
    for pipe in predict.THREADS:
        assert shared.pipes[pipe] == pytest.approx(2 * alone.pipes[pipe])
    assert all(shared.pipes[pipe] == alone.pipes[pipe] for pipe in (*predict.PRODUCTS, "memory"))


def operand_bytes(rows, columns, depth, from_shared):
    """Instruction by instruction, each 16 deep: the streamed operand, and the other if it is in shared memory."""
    read = 0
    for _ in range(0, depth, 16):
        read += 2 * 16 * columns + (2 * 16 * rows if from_shared else 0)
    return read


@pytest.mark.parametrize(("tiling", "other"), [(FORWARD, 256), (DQ, 256), (DKV, 1024)])
def test_shared_memory_of_a_tile_product_by_product(tiling, other):
    found = predicted((TANH,), tiling, H100)
    backward, sums = tiling.direction != "forward", 2 if tiling.direction == "dkv" else 1
    moved = 0
    for _ in range(0, other, tiling.block):
        for _ in range(1 + backward):
            moved += operand_bytes(64, tiling.block, 128, from_shared=True)
        for _ in range(sums):
            moved += operand_bytes(64, 128, tiling.block, from_shared=False)
    moved += (1 + backward + 2 * sums) * 64 * 128 * 2  # what stays arrives, results are staged and read
    moved += 2 * other * 128 * 2 / (tiling.units * RUN[tiling.direction])  # what streams arrives once for several tiles
    assert found is not None
    # dkv's stationary tiles are of keys, a quarter as many.
    tiles = clocks(found, "shared", H100, 64) * (4 if tiling is DKV else 1)
    assert tiles == pytest.approx(moved / 128)


def test_times_and_shares():
    pipes = dict.fromkeys((*predict.THREADS, *predict.PRODUCTS, "memory"), 1e-3)
    dq = Prediction(pipes | {"shared": 3e-3, "fma": 2e-3, "memory": 4e-3}, int(6e12))
    assert (dq.limit, dq.overlapped, dq.apart) == ("memory", 4e-3, 5e-3)
    dkv = Prediction(pipes | {"matrix": 6e-3, "memory": 20e-3}, int(8e12))
    assert (dkv.overlapped, dkv.apart) == (20e-3, 20e-3)
    # 10 TFLOPs counted, in 24 ms if all overlaps and in 25 if not.
    best, worst = predict.backward(dq, dkv, H100)
    assert best == pytest.approx(10e12 / 24e-3 / 989e12) and worst == pytest.approx(10e12 / 25e-3 / 989e12)
    assert dq.row() == dq.pipes | {"limit": "memory", "flops": int(6e12), "overlapped": 4e-3, "apart": 5e-3}
    assert Prediction(pipes | {"matrix": math.pi}, 1).row()["matrix"] == 3.142


def test_masked_tiles_take_the_longer_way():
    loop = Loop(10, {"mufu": 4, "integer": 6}, {"mufu": 4})
    done = Work(tiles=10, trips=30, edges=7, loaded=0, bytes=0)
    found = predict.predict((loop,), FORWARD, done, H100)
    assert found is not None
    alu, mufu = (found.pipes[name] * H100.clock * H100.multiprocessors for name in ("alu", "mufu"))
    assert alu == pytest.approx(7 * 6 * 128 / 64) and mufu == pytest.approx(30 * 4 * 128 / 16)
    assert found.flops == 30 * 2 * 2 * 64 * 128 * 128


def test_norms_are_a_trip_of_each_other_loop_and_passes_over_the_tile():
    score, norm = Loop(4, {"mufu": 4}, {"mufu": 4}), Loop(3, {"fma": 3}, {"fma": 3})
    issuing = Loop(9, {"matrix": 1, "uniform": 8}, {"matrix": 1, "uniform": 8})
    done = Work(tiles=10, trips=20, edges=0, loaded=0, bytes=0)
    plain, block = (
        predict.predict((norm, score, issuing), dataclasses.replace(FORWARD, norm_passes=n), done, H100) for n in (0, 9)
    )
    assert plain is not None and block is not None
    more = {name: block.pipes[name] - plain.pipes[name] for name in plain.pipes}
    assert more.pop("fma") * H100.clock * H100.multiprocessors == pytest.approx(10 * 3)
    assert more.pop("issue") * H100.clock * H100.multiprocessors == pytest.approx(10 * 3)
    assert more.pop("shared") * H100.clock * H100.multiprocessors == pytest.approx(10 * 9 * 64 * 256 / 128)
    assert not any(more.values())


def test_what_cannot_be_predicted():
    assert predicted((Loop(16, {"matrix": 16}, {"matrix": 16}),), FORWARD, H100) is None


@pytest.mark.parametrize("chip", [H100, B200], ids=lambda chip: chip.name)
def test_cases_of_the_predicted_shapes(chip):
    cases = [case for case in catalogue.cases(chip) if case.shape]
    for operator in ("gdpa", "window_attention", "seed_attention"):
        assert {c.direction for c in cases if c.operator == operator} == {"forward", "dq", "dkv"}
    assert {(case.operator, case.dim, case.window, case.seeds) for case in cases} == {
        ("gdpa", 128, None, None),
        ("gdpa_block", 128, None, None),
        ("window_attention", 128, (100, 100), None),
        ("seed_attention", 128, None, 64),
        ("seed_attention", 128, None, 256),
    }
    for case in cases:
        # What a thread of a unit's warpgroups has of a tile.
        assert case.tiling.rows * case.tiling.block / 128 / case.tiling.warpgroups == case.scores
        assert case.tiling.issues == (chip is H100)
        if case.operator == "gdpa":
            assert GDPA.max_length % case.tiling.block == GDPA.max_length % case.tiling.rows == 0
