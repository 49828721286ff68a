"""Our Wukong layers against FuxiCTR's: ``python -m experiments.cross_check.fuxictr --checkout FuxiCTR``.

The checkout is one of https://github.com/reczoo/FuxiCTR. Two layers of its WuKong (11 -> 7 -> 7 tokens, so one has a
linear residual and one the identity) and two of `kunlun_jax.nn.interaction` get the same weights and the same random
tokens in float64. Seconds on a CPU. Expected: rounding alone, differences below 1e-10 of the largest entry, else the
exit code is 1.

Of the checkout the files of the model and of its MLP are imported, whole. The packages around them would need polars
and other libraries; `BaseModel` and `FeatureEmbedding`, which no layer uses, are stood in for.

Where the two differ by design:

* Their deep net after FM ends in a ReLU, ours in a linear map. Its last bias is set so high here that the ReLU cuts
  nothing (which is checked); the LayerNorm at the end of a layer takes the same number off all channels of a token.
* Their linear residual has a bias, one number for all channels of a token, of which that norm leaves nothing.
* `unit_products` is ours alone and is off.
"""

import functools
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from flax import nnx
from jaxtyping import Array
from torch import Tensor

from experiments.cross_check.checkout import importing, module_at, required, stand_in
from experiments.cross_check.comparison import (
    Stack,
    command,
    differences,
    randomize,
    result_of_ours,
    result_of_theirs,
)
from kunlun_jax.nn.interaction import WukongExpert

URL = "https://github.com/reczoo/FuxiCTR"
MODEL, MLP = "model_zoo/WuKong/src/WuKong.py", "fuxictr/pytorch/layers/blocks/mlp_block.py"
NOTES = (
    "Not compared: the ReLU at the end of their FM block (cuts nothing), the bias of their residual (has no effect)."
)

BATCH, TOKENS, DIM, RANK, HIDDEN = 6, 11, 8, 5, (16, 12)
FM_TOKENS, LINEAR_TOKENS = 3, 4
LAYERS = 2
ABOVE_RELU = 10.0
"""Added to the last bias of their FM block."""


def load(checkout: Path) -> type[torch.nn.Module]:
    """FuxiCTR's layer.

    Raises:
      ValueError: the folder is no checkout of it.
    """
    model, mlp = (required(checkout, file, URL) for file in (MODEL, MLP))
    with importing(checkout, "fuxictr"):
        block = module_at(mlp, "mlp_block").MLP_Block
        stand_in("fuxictr.pytorch.layers", MLP_Block=block, FeatureEmbedding=torch.nn.Module)
        stand_in("fuxictr.pytorch.models", BaseModel=torch.nn.Module)
        return module_at(model, "WuKong").WuKongLayer


def last_activation(layer: torch.nn.Module) -> torch.nn.Module:
    """The ReLU at the end of their FM block."""
    return list(layer.get_submodule("fmb.mlp.mlp").children())[-1]


def carry(stack: torch.nn.Sequential, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Their tensors, weights or gradients, under our names; without the bias of the residual."""
    found = {}
    for number, layer in enumerate(stack):
        names = {
            "fmb.proj_Y": "fm_map",
            "fmb.layer_norm.weight": "fm_norm.weight",
            "fmb.layer_norm.bias": "fm_norm.bias",
            "lcb.linear.weight": "linear.weight",
            "residual_proj.weight": "residual.weight",
            "layer_norm.weight": "norm.weight",
            "layer_norm.bias": "norm.bias",
        }
        maps = [n for n, m in layer.get_submodule("fmb.mlp.mlp").named_children() if isinstance(m, torch.nn.Linear)]
        for place, name in enumerate(maps):
            names |= {f"fmb.mlp.mlp.{name}.{leaf}": f"deep.layers.{place}.{leaf}" for leaf in ("weight", "bias")}
        for name, _ in layer.named_parameters():
            if name != "residual_proj.bias":
                found[f"layers.{number}.{names.get(name, name)}"] = tensors[f"{number}.{name}"].detach().numpy().copy()
    return found


def run_theirs(stack: torch.nn.Sequential, x: Tensor) -> Tensor:
    """Their output.

    Raises:
      ValueError: the ReLU at the end of an FM block cut something, so that the two models are not the same.
    """
    least: list[float] = []

    def note(_: torch.nn.Module, inputs: tuple[Tensor]) -> None:
        least.append(inputs[0].min().item())

    hooks = [last_activation(layer).register_forward_pre_hook(note) for layer in stack]
    output = stack(x)
    for hook in hooks:
        hook.remove()
    if len(least) != len(stack) or not min(least) > 0:
        raise ValueError(f"the ReLUs at the end of FM blocks met {least} at least; raise ABOVE_RELU, now {ABOVE_RELU}")
    return output


def make_theirs(layer: type[torch.nn.Module], rng: np.random.Generator) -> torch.nn.Sequential:
    """Their layers with random weights, and last biases above the ReLU."""
    stack = torch.nn.Sequential(
        *(
            layer(
                input_features=tokens,
                lcb_features=LINEAR_TOKENS,
                fmb_features=FM_TOKENS,
                embedding_dim=DIM,
                fmp_rank_k=RANK,
                fmb_mlp_units=list(HIDDEN),
                fmb_mlp_activations="relu",
                fmb_dropout=0,
                layer_norm=True,
            )
            for tokens in (TOKENS, *[FM_TOKENS + LINEAR_TOKENS] * (LAYERS - 1))
        )
    ).double()
    randomize(stack, rng, 0.2)
    with torch.no_grad():
        for one in stack:
            *_, last = (m for m in one.get_submodule("fmb.mlp.mlp").children() if isinstance(m, torch.nn.Linear))
            last.bias.add_(ABOVE_RELU)
    return stack


def make_ours() -> Stack:
    """Our layers of the same sizes."""
    tokens = (TOKENS, *[FM_TOKENS + LINEAR_TOKENS] * (LAYERS - 1))
    sizes = {"fm_tokens": FM_TOKENS, "linear_tokens": LINEAR_TOKENS, "rank": RANK, "hidden": HIDDEN}
    rest = {"activation": "relu", "unit_products": False, "dtype": np.dtype(np.float64), "rngs": nnx.Rngs(0)}
    return Stack([WukongExpert(number, DIM, **sizes, **rest) for number in tokens])


def compare(checkout: Path, rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """Case -> what -> relative difference; errors as `load` and `run_theirs`."""
    stack = make_theirs(load(checkout), rng)
    x = rng.normal(size=(BATCH, TOKENS, DIM))
    cotangent = rng.normal(size=(BATCH, FM_TOKENS + LINEAR_TOKENS, DIM))
    carried = carry(stack, dict(stack.named_parameters()))

    def run_ours(stack: Stack, x: Array) -> Array:
        for layer in stack.layers:
            x = layer(x)
        return x

    run = functools.partial(run_theirs, stack)
    theirs = result_of_theirs(stack, functools.partial(carry, stack), run, x, cotangent)
    ours = result_of_ours(make_ours(), carried, run_ours, x, cotangent)
    return {"two layers": differences(theirs, ours)}


def main(arguments: list[str] | None = None) -> int:
    """Compares and prints; returns the exit code."""
    return command(arguments, "fuxictr", __doc__, compare, NOTES)


if __name__ == "__main__":
    sys.exit(main())
