"""The comparison with FuxiCTR on a stand-in that the test writes: alike passes, one thing changed fails."""

from pathlib import Path

import pytest

from experiments.cross_check import fuxictr

MLP = """
import torch

class MLP_Block(torch.nn.Module):
    def __init__(self, input_dim, hidden_units, hidden_activations, output_dim, output_activation, dropout_rates):
        super().__init__()
        assert hidden_activations == output_activation == "relu" and dropout_rates == 0
        sizes = [input_dim, *hidden_units, output_dim]
        pairs = zip(sizes[:-1], sizes[1:])
        self.mlp = torch.nn.Sequential(*(m for a, b in pairs for m in (torch.nn.Linear(a, b), torch.nn.ReLU())))

    def forward(self, x):
        return self.mlp(x)
"""

MODEL = """
import torch
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel

class FM(torch.nn.Module):
    def __init__(self, tokens, out, dim, rank, hidden):
        super().__init__()
        self.proj_Y = torch.nn.Parameter(torch.randn(tokens, rank))
        self.layer_norm = torch.nn.LayerNorm(tokens * rank)
        self.mlp = MLP_Block(tokens * rank, hidden, "relu", out * dim, "relu", 0)
        self.out = out

    def forward(self, x):
        products = x @ x.mT @ self.proj_Y
        return self.mlp(self.layer_norm(products.flatten(1))).unflatten(1, (self.out, -1))

class Linear(torch.nn.Module):
    def __init__(self, tokens, out):
        super().__init__()
        self.linear = torch.nn.Linear(tokens, out, bias=False)

    def forward(self, x):
        return self.linear(x.mT).mT

class WuKongLayer(torch.nn.Module):
    def __init__(self, input_features, lcb_features, fmb_features, embedding_dim, fmp_rank_k, fmb_mlp_units,
                 fmb_mlp_activations, fmb_dropout, layer_norm):
        super().__init__()
        self.fmb = FM(input_features, fmb_features, embedding_dim, fmp_rank_k, fmb_mlp_units)
        self.lcb = Linear(input_features, lcb_features)
        self.layer_norm = torch.nn.LayerNorm(embedding_dim)
        if input_features != lcb_features + fmb_features:
            self.residual_proj = torch.nn.Linear(input_features, lcb_features + fmb_features)

    def forward(self, x):
        residual = self.residual_proj(x.mT).mT if hasattr(self, "residual_proj") else x
        out = torch.cat([self.fmb(x), self.lcb(x)], dim=1)
        return self.layer_norm(out + residual)
"""


def write(folder: Path, old: str = "", new: str = "") -> Path:
    """A checkout in `folder`, one place of it changed; the package around the layers cannot be imported."""
    assert MODEL.count(old) == 1 or not old
    files = {fuxictr.MLP: MLP, fuxictr.MODEL: MODEL.replace(old, new) if old else MODEL}
    files |= {"fuxictr/pytorch/layers/__init__.py": "import a_library_that_is_not_installed"}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_alike_in_everything_passes(tmp_path, capsys):
    assert fuxictr.main(["--checkout", str(write(tmp_path))]) == 0
    rows = capsys.readouterr().out.splitlines()
    found = {row[:34].strip(): float(row[34:]) for row in rows if row.startswith(("output", "gradient"))}
    weights = ("fm_map", "deep.layers.2.bias", "linear.weight", "residual.weight", "norm.bias")
    assert {"output", "gradient of the input", *(f"gradient of {name}" for name in weights)} <= set(found)
    assert max(found.values()) < 1e-10


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("torch.cat([self.fmb(x), self.lcb(x)], dim=1)", "torch.cat([self.lcb(x), self.fmb(x)], dim=1)"),
        ("x @ x.mT @ self.proj_Y", "1.001 * (x @ x.mT @ self.proj_Y)"),
        ('hasattr(self, "residual_proj") else x', 'hasattr(self, "residual_proj") else 0'),
        ("self.linear(x.mT).mT", "self.linear(x.mT.detach()).mT"),
        ("torch.nn.LayerNorm(embedding_dim)", "torch.nn.LayerNorm(embedding_dim, eps=1e-6)"),
    ],
    ids=["order", "scale", "no residual", "gradient alone", "epsilon"],
)
def test_one_thing_changed_fails(tmp_path, capsys, old, new):
    assert fuxictr.main(["--checkout", str(write(tmp_path, old, new))]) == 1
    assert "error: differs by more than 1e-10: two layers, " in capsys.readouterr().err


def test_a_weight_that_ours_has_not_is_named(tmp_path, capsys):
    checkout = write(tmp_path, "torch.nn.Linear(tokens, out, bias=False)", "torch.nn.Linear(tokens, out)")
    assert fuxictr.main(["--checkout", str(checkout)]) == 2
    assert "layers.0.lcb.linear.bias [4] is not of this model" in capsys.readouterr().err


def test_a_relu_that_cuts_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fuxictr, "ABOVE_RELU", 0.0)
    assert fuxictr.main(["--checkout", str(write(tmp_path))]) == 2
    assert "raise ABOVE_RELU, now 0.0" in capsys.readouterr().err


def test_a_folder_that_is_no_checkout_says_what_to_type(tmp_path, capsys):
    assert fuxictr.main(["--checkout", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / fuxictr.MODEL) in error and f"`git clone {fuxictr.URL}`" in error
    assert "--checkout FuxiCTR" in error
