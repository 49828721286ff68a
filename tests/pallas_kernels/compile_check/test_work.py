"""Tiles of a pass and of tokamax, counted tile by tile, and bytes by each operator's own count."""

import numpy as np
import pytest

from pallas_kernels.chips import H100
from pallas_kernels.compile_check import catalogue, peers, work
from pallas_kernels.compile_check.work import GDPA, SEEDS, WINDOW
from pallas_kernels.operators.gdpa import shapes as gdpa
from pallas_kernels.operators.seed_attention import shapes as seed_attention
from pallas_kernels.operators.window_attention import shapes as window_attention

CASES = {(c.operator, c.direction, c.seeds): c for c in catalogue.cases(H100) if c.shape and c.dtype == "bfloat16"}


def counted(case):
    assert case.shape is not None
    return work.work(case.direction, case.generation, case.config, case.shape)


def by_hand(lengths, rows, block, window):
    """Stationary tiles, pairs of tiles that meet in the window, and those of them in which some pair does not count.

    The first streamed row of two tiles of stationary rows is the first that they see, rounded down to 8.
    """
    below, above = window
    tiles = pairs = edges = 0
    for length in lengths:
        for first in range(0, length, rows):
            origin = max(first // (2 * rows) * 2 * rows - below, 0) // 8 * 8
            inside = np.arange(first, min(first + rows, length))
            tiles += 1
            for start in range(origin, length, block):
                column = np.arange(start, start + block)
                if column[-1] >= inside[0] - below and column[0] <= min(inside[-1] + above, length - 1):
                    pairs += 1
                    full_tile = np.arange(first, first + rows)
                    whole = (column[0] >= full_tile[-1] - below) and (column[-1] <= full_tile[0] + above)
                    edges += not (whole and column[-1] < length)
    return tiles, pairs, edges


@pytest.mark.parametrize("direction", ["forward", "dq", "dkv"])
def test_tiles_of_the_window_one_by_one(direction):
    case = CASES["window_attention", direction, None]
    found = counted(case)
    tiles, pairs, edges = by_hand(work.lengths(WINDOW), 64, case.config.block, WINDOW.window)
    assert (found.tiles, found.trips, found.edges) == (4 * tiles, 4 * pairs, 4 * edges)


def test_tiles_of_seeds():
    lengths = work.lengths(SEEDS[64])
    found = counted(CASES["seed_attention", "forward", 64])
    assert (found.tiles, found.trips) == (4 * 1152, 4 * int((-(-lengths // 128)).sum()))
    # The last tile of a history is masked unless it is full.
    assert found.edges == 4 * int((lengths % 128 > 0).sum())
    assert found.loaded == found.trips * 128


def test_bytes_are_those_of_the_operators():
    """A backward pass by two kernels reads q, k, v and the cotangent twice, and its numbers by row."""
    length = {shape: work.lengths(shape) for shape in (GDPA, WINDOW, SEEDS[256])}
    rows = {shape: int(held.sum()) for shape, held in length.items()}
    row = 2 * 4 * 128
    whole = {
        GDPA: gdpa.cost(length[GDPA], keys=256, heads=4, dim=128),
        WINDOW: window_attention.cost(length[WINDOW], window=(100, 100), heads=4, dim=128),
        SEEDS[256]: seed_attention.cost(length[SEEDS[256]], seeds=256, heads=4, dim=128),
    }
    outputs = 1152 * 256
    twice = {
        GDPA: row * (2 * rows[GDPA] + 2 * 1152 * 256),
        # Delta is made before, from the output.
        WINDOW: row * 4 * rows[WINDOW] + 8 * 4 * rows[WINDOW] - row * rows[WINDOW],
        # And the seeds' gradient is written for each example in float32.
        SEEDS[256]: row * (256 + 2 * rows[SEEDS[256]] + outputs)
        + 8 * 4 * outputs
        + row * (2 * outputs - 256)
        - row * outputs,
    }
    names = {GDPA: ("gdpa", None), WINDOW: ("window_attention", None), SEEDS[256]: ("seed_attention", 256)}
    for shape, (operator, seeds) in names.items():
        moved = {d: counted(CASES[operator, d, seeds]).bytes for d in ("forward", "dq", "dkv")}
        assert moved["forward"] == whole[shape].forward_bytes
        assert moved["dq"] + moved["dkv"] == whole[shape].backward_bytes + twice[shape]


def test_tiles_of_tokamax_one_by_one():
    found, pairs, loaded, read = peers.tokamax("forward"), 0, 0, 0
    for length in work.lengths(WINDOW):
        seen = set()
        for first in range(0, 1024, 128):
            queries = np.arange(first, first + 128)
            lowest, highest = max(first - 100, 0), int(np.minimum(queries + 101, length).max())
            keys = range(lowest // 128, -(-highest // 128))
            pairs += 4 * len(keys)  # two units of queries by two tiles of 64 keys
            loaded += 128 * len(keys)
            seen |= set(keys)
        read += 128 * len(seen)
    assert (found.trips, found.loaded, found.tiles) == (4 * pairs, 4 * loaded, 4 * 1152 * 16)
    assert found.edges == found.trips  # 128 keys and 64 queries never fit into 201
    assert found.bytes == 1024 * (2 * 1152 * 1024 + 2 * read) + 2 * 4 * 4 * 1152 * 1024
    for direction, arrays in (("dq", 5), ("dkv", 6)):
        whole = peers.tokamax(direction)
        assert whole.trips == whole.edges == 4 * 1152 * 16 * 16
        assert whole.bytes == 1152 * 1024 * (arrays * 1024 + 3 * 4 * 4)


def test_the_least_of_cudnn_is_the_roofline_of_all_pairs():
    pairs = int((work.lengths(WINDOW).astype(np.int64) ** 2).sum())
    least = peers.cudnn(H100)
    assert least["forward"] == pytest.approx(4 * 4 * 128 * pairs / H100.flops)
    assert least["backward"] == pytest.approx(10 * 4 * 128 * pairs / H100.flops)
    assert set(peers.PASSES) == set(least)
