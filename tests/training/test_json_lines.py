import json

import pytest

from kunlun_jax.training import json_lines

LINES = [
    {"kind": "train", "step": 3, "ne": 0.1 + 0.2},
    {"kind": "eval", "step": 3, "note": "é"},
    {"kind": "train", "step": 6},
]


@pytest.fixture
def path(tmp_path):
    json_lines.append(tmp_path / "lines.jsonl", LINES)
    return tmp_path / "lines.jsonl"


def test_lines_are_read_as_they_were_written(path):
    assert json_lines.read(path) == LINES
    first, *_ = path.read_text().splitlines()
    assert json.loads(first) == LINES[0] | {"crc32": json.loads(first)["crc32"]}  # JSON for every other reader


def test_lines_added_one_by_one_are_those_written_at_once(path, tmp_path):
    for line in LINES:
        json_lines.append(tmp_path / "one_by_one", [line])
    json_lines.append(path, [])
    assert (tmp_path / "one_by_one").read_text() == path.read_text() == json_lines.text_of(LINES)


def test_each_bit_counts(path):
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(changed))
        if bit // 8 == len(data) - 1:  # without its end the last line was never finished
            assert json_lines.read(path) == LINES[:-1]
        else:
            with pytest.raises(ValueError, match=r"lines\.jsonl, line \d"):
                json_lines.read(path)


def test_a_line_that_is_lost_moved_or_made_up_is_found(path):
    first, second, third = path.read_text().splitlines(keepends=True)
    for damaged in (
        (second, third),
        (first, third),
        (second, first, third),
        (first, first, second),
        (first, '{"kind": "eval", "step": 3}\n'),
    ):
        path.write_text("".join(damaged))
        with pytest.raises(ValueError, match=r"line \d is not as it was written: its crc32 is"):
            json_lines.read(path)


def test_a_damaged_line_that_is_not_the_last_is_named(path):
    first, second, third = path.read_text().splitlines(keepends=True)
    path.write_text(first + second[:5] + "\n" + third)
    with pytest.raises(ValueError, match=r"lines\.jsonl, line 2 is not valid JSON"):
        json_lines.read(path)
    path.write_text(json_lines.text_of([{"step": 1}]))
    with pytest.raises(ValueError, match=r"line 1 must be an object with kind and step"):
        json_lines.read(path)


def test_what_is_not_finite_leaves_the_file_as_it_was(path):
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_lines.append(path, [{"kind": "train", "step": 9}, {"kind": "train", "step": 9, "ne": float("nan")}])
    assert path.read_bytes() == before
