"""The comparison with HSTU's authors on a stand-in that the test writes, an event at a time."""

from pathlib import Path

import pytest

from experiments.cross_check import generative_recommenders

MODEL = """
import math
import torch
import torch.nn.functional as F

class Bias(torch.nn.Module):
    def __init__(self, n):
        super().__init__()
        self._pos_w, self._ts_w = (torch.nn.Parameter(torch.zeros(m)) for m in (2 * n - 1, 129))
        self.n = n

    def forward(self, seconds, i, j):
        gap = int(seconds[min(i + 1, self.n - 1)] - seconds[j])
        bucket = int(math.log(max(gap, 1)) / 0.301)
        return self._pos_w[self.n - 1 + j - i] + self._ts_w[bucket]

class Block(torch.nn.Module):
    def __init__(self, dim, heads, n):
        super().__init__()
        self._uvqk = torch.nn.Parameter(torch.zeros(dim, 4 * dim))
        self._o = torch.nn.Linear(dim, dim)
        self._rel_attn_bias = Bias(n)
        self.dim, self.heads, self.n = dim, heads, n

    def forward(self, x, seconds):
        norm = lambda y: F.layer_norm(y, [self.dim], eps=1e-6)
        u, v, q, k = F.silu(norm(x) @ self._uvqk).split(self.dim, dim=1)
        v, q, k = (y.unflatten(1, (self.heads, -1)) for y in (v, q, k))
        rows = []
        for i in range(len(x)):
            total = 0
            for j in range(i + 1):
                score = (q[i] * k[j]).sum(1) + self._rel_attn_bias(seconds, i, j)
                total = total + F.silu(score)[:, None] / self.n * v[j]
            rows.append((total + 0 * v[i]).flatten())
        return x + self._o(u * norm(torch.stack(rows)))

class Blocks(torch.nn.Module):
    def __init__(self, number, *sizes):
        super().__init__()
        self._attention_layers = torch.nn.ModuleList(Block(*sizes) for _ in range(number))

    def jagged_forward(self, x, x_offsets, all_timestamps, invalid_attn_mask):
        # There and back, by the operators of fbgemm.
        n = len(invalid_attn_mask)
        x = torch.ops.fbgemm.jagged_to_padded_dense(x, [x_offsets], [n])
        x = torch.ops.fbgemm.dense_to_jagged(x, [x_offsets])[0]
        for layer in self._attention_layers:
            parts = zip(x.split(x_offsets.diff().tolist()), all_timestamps)
            x = torch.cat([layer(part, seconds) for part, seconds in parts if len(part)])
        return x, None

class HSTU(torch.nn.Module):
    def __init__(self, max_sequence_len, embedding_dim, num_blocks, num_heads, **rest):
        super().__init__()
        self._hstu = Blocks(num_blocks, embedding_dim, num_heads, max_sequence_len)
"""


def write(folder: Path, old: str = "", new: str = "") -> Path:
    """A checkout in `folder`, one place of it changed."""
    assert MODEL.count(old) == 1 or not old
    path = folder / (generative_recommenders.MODULE.replace(".", "/") + ".py")
    path.parent.mkdir(parents=True)
    path.write_text(MODEL.replace(old, new) if old else MODEL)
    return folder


def test_alike_in_everything_passes(tmp_path, capsys):
    assert generative_recommenders.main(["--checkout", str(write(tmp_path))]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[-2:] == ["position", "time"]
    cells = {row[:34].strip(): row[34:].split() for row in rows if row.startswith(("output", "gradient"))}
    assert {"output", "gradient of the input", "gradient of uvqk.weight", "gradient of position_bias"} <= set(cells)
    assert cells["gradient of time_bias"][0] == "-" and float(cells["gradient of time_bias"][1]) < 1e-10


@pytest.mark.parametrize(
    ("old", "new", "case"),
    [
        ("/ self.n * v[j]", "/ (i + 1) * v[j]", "position"),
        ("range(i + 1)", "range(i)", "position"),
        ("self.n - 1 + j - i", "self.n - 1 + i - j", "position"),
        ("/ 0.301", "/ 0.302", "time"),
        ("seconds[min(i + 1, self.n - 1)] - seconds[j]", "seconds[i] - seconds[max(j - 1, 0)]", "time"),
        ("(q[i] * k[j]).sum(1)", "(q[i].detach() * k[j]).sum(1)", "position"),
    ],
    ids=["n", "mask", "newer", "buckets", "gap", "gradient alone"],
)
def test_one_thing_changed_fails(tmp_path, capsys, old, new, case):
    checkout = write(tmp_path, old, new)
    assert generative_recommenders.main(["--checkout", str(checkout)]) == 1
    assert f"error: differs by more than 1e-10: {case}, " in capsys.readouterr().err


def test_a_folder_that_is_no_checkout_says_what_to_type(tmp_path, capsys):
    assert generative_recommenders.main(["--checkout", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"`git clone {generative_recommenders.URL}`" in error and "--checkout generative-recommenders" in error
