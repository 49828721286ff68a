"""Our HSTU against its authors': ``python -m experiments.cross_check.generative_recommenders --checkout FOLDER``.

The checkout is one of https://github.com/facebookresearch/generative-recommenders; compared is its model in PyTorch
(``research/modeling/sequential/hstu.py``), imported whole, with `kunlun_jax.nn.hstu`. Both get the same weights and
the same random sequences of 0 to 24 events in float64. Seconds on a CPU. Expected: rounding alone, differences below
1e-10 of the largest entry, else the exit code is 1.

Their code pads and packs with two operators of fbgemm_gpu; where that is not installed they are written here, in plain
PyTorch. They move rows and compute nothing.

Where the two differ by design:

* Their time bias is of the gap from a key to the event after the query, the one to be predicted; ours is of the gap to
  the query, since for ranking the candidate is in the sequence. So in case "position" the time bias is zero. In case
  "time" events come in pairs of the same second, and the first of each, for which both gaps are the same, is compared.
  The second one's output differs, so there is one block in that case, and three in the other.
* Their norms have no scale and no bias, their map to U, V, Q, K no bias: ours are 1 and 0. The epsilon of their norms
  is 1e-6.
* Their position bias has an entry for newer keys as well, which the causal mask leaves unused.
* n is the padded length in theirs and `sequence_scale` in ours; buckets of time are 129.
"""

import functools
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from jaxtyping import Array, Int
from torch import Tensor

from experiments.cross_check.checkout import importing, required
from experiments.cross_check.comparison import (
    Stack,
    command,
    differences,
    randomize,
    result_of_ours,
    result_of_theirs,
)
from kunlun_jax.batch import Jagged
from kunlun_jax.nn.hstu import HSTUBlock
from pallas_kernels.jagged import aligned

URL = "https://github.com/facebookresearch/generative-recommenders"
PACKAGE = "generative_recommenders"
MODULE = f"{PACKAGE}.research.modeling.sequential.hstu"
NOTES = (
    "position: three blocks, no time bias. time: one block, first events of pairs of the same second.\n"
    "Not compared: the time bias by the event after the query, scales and biases of norms and U, V, Q, K (ours alone)."
)

LENGTHS = np.array([0, 24, 7, 1, 16, 0, 13])
LONGEST, DIM, HEADS, BUCKETS = 24, 16, 2, 129
EPSILON = 1e-6
"""Of their norms."""


def pad(values: Tensor, offsets: list[Tensor], max_lengths: list[int], padding_value: float = 0.0) -> Tensor:
    """``[sum of lengths, dim]`` -> ``[batch, max_length, dim]``."""
    lengths = offsets[0].diff().tolist()
    out = values.new_full((len(lengths), max_lengths[0], values.shape[1]), padding_value)
    return out.masked_scatter(_inside(lengths, max_lengths[0])[..., None].expand_as(out), values)


def pack(dense: Tensor, offsets: list[Tensor], total_L: int | None = None) -> tuple[Tensor, list[Tensor]]:
    """``[batch, max_length, dim]`` -> ``[sum of lengths, dim]``, and the offsets."""
    return dense[_inside(offsets[0].diff().tolist(), dense.shape[1])], offsets


def _inside(lengths: list[int], longest: int) -> Tensor:
    return torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]


@functools.cache
def _fbgemm() -> torch.library.Library | None:
    """The two operators, unless fbgemm_gpu has registered them; the object keeps them alive."""
    if hasattr(torch.ops.fbgemm, "jagged_to_padded_dense"):
        return None
    library = torch.library.Library("fbgemm", "FRAGMENT")
    for name, function, signature in (
        (
            "jagged_to_padded_dense",
            pad,
            "(Tensor values, Tensor[] offsets, int[] max_lengths, float padding_value=0) -> Tensor",
        ),
        ("dense_to_jagged", pack, "(Tensor dense, Tensor[] offsets, int? total_L=None) -> (Tensor, Tensor[])"),
    ):
        library.define(name + signature)
        library.impl(name, function, "CompositeImplicitAutograd")
    return library


def load(checkout: Path) -> type[torch.nn.Module]:
    """Their HSTU.

    Raises:
      ValueError: the folder is no checkout of it.
    """
    required(checkout, MODULE.replace(".", "/") + ".py", URL)
    _fbgemm()
    with importing(checkout, PACKAGE):
        return importlib.import_module(MODULE).HSTU


class Width(torch.nn.Module):
    """What their model asks of an embedding module when it is made."""

    item_embedding_dim = DIM


def make_theirs(hstu: type[torch.nn.Module], blocks: int, rng: np.random.Generator) -> torch.nn.Module:
    """Their model with random weights; what surrounds the blocks is not used."""
    model = hstu(
        max_sequence_len=LONGEST,
        max_output_len=0,
        embedding_dim=DIM,
        num_blocks=blocks,
        num_heads=HEADS,
        linear_dim=DIM // HEADS,
        attention_dim=DIM // HEADS,
        normalization="rel_bias",
        linear_config="uvqk",
        linear_activation="silu",
        linear_dropout_rate=0.0,
        attn_dropout_rate=0.0,
        embedding_module=Width(),
        similarity_module=torch.nn.Module(),
        input_features_preproc_module=torch.nn.Module(),
        output_postproc_module=torch.nn.Module(),
        verbose=False,
    ).double()
    stack = model.get_submodule("_hstu")
    randomize(stack, rng, 0.3)
    return stack


def carry(with_time: bool, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Their tensors, weights or gradients, under our names."""
    found = {}
    for name, tensor in tensors.items():
        number, _, leaf = name.removeprefix("_attention_layers.").partition(".")
        array, place = tensor.detach().numpy().copy(), f"layers.{number}."
        if leaf == "_uvqk":
            found[place + "uvqk.weight"] = array.T
        elif leaf == "_rel_attn_bias._pos_w":
            # Entry LONGEST - 1 + j - i is that of query i and key j; ours is i - j.
            found[place + "position_bias"] = array[LONGEST - 1 :: -1]
        elif leaf != "_rel_attn_bias._ts_w":
            found[place + leaf.replace("_o.", "out.")] = array
        elif with_time:
            found[place + "time_bias"] = array
    return found


def weights_of(stack: torch.nn.Module, blocks: int) -> dict[str, np.ndarray]:
    """All weights of our blocks: theirs, and those that they do not have, without effect."""
    found = carry(True, dict(stack.named_parameters()))
    for number in range(blocks):
        found[f"layers.{number}.uvqk.bias"] = np.zeros(4 * DIM)
        for norm in ("norm", "out_norm"):
            found |= {f"layers.{number}.{norm}.weight": np.ones(DIM), f"layers.{number}.{norm}.bias": np.zeros(DIM)}
    return found


def make_ours(blocks: int) -> Stack:
    """Our blocks of the same sizes, with their epsilon."""
    made = [
        HSTUBlock(
            DIM,
            heads=HEADS,
            n=float(LONGEST),
            biased=True,
            positions=LONGEST,
            buckets=BUCKETS,
            dropout=0.0,
            implementation=None,
            dtype=np.dtype(np.float64),
            rngs=nnx.Rngs(0),
        )
        for _ in range(blocks)
    ]
    for block in made:
        block.norm.epsilon = block.out_norm.epsilon = EPSILON
    return Stack(made)


def timestamps(rng: np.random.Generator) -> Int[np.ndarray, "batch time"]:
    """Seconds of events, in pairs of the same second, with gaps of one to ten million; padding has the last one's."""
    gaps = np.exp(rng.uniform(0, np.log(1e7), (len(LENGTHS), LONGEST // 2))).astype(np.int64)
    seconds = 1_600_000_000 + np.repeat(gaps.cumsum(axis=1), 2, axis=1)
    last = np.maximum(LENGTHS - 1, 0)[:, None]
    return np.take_along_axis(seconds, np.minimum(np.arange(LONGEST)[None, :], last), axis=1)


def compare(checkout: Path, rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """Case -> what -> relative difference; errors as `load`."""
    hstu = load(checkout)
    return {name: case(hstu, blocks, name == "time", rng) for name, blocks in (("position", 3), ("time", 1))}


def case(hstu: type[torch.nn.Module], blocks: int, with_time: bool, rng: np.random.Generator) -> dict[str, float]:
    """One case of `compare`."""
    stack, seconds = make_theirs(hstu, blocks, rng), timestamps(rng)
    if not with_time:
        with torch.no_grad():
            for name, parameter in stack.named_parameters():
                if name.endswith("_ts_w"):
                    parameter.zero_()
    valid = np.arange(LONGEST)[None, :] < LENGTHS[:, None]
    following = np.concatenate([seconds[:, 1:], seconds[:, -1:]], axis=1)
    compared = (following == seconds)[valid] if with_time else np.ones(LENGTHS.sum(), bool)
    x = rng.normal(size=(LENGTHS.sum(), DIM))
    cotangent = rng.normal(size=(compared.sum(), DIM))

    offsets = np.concatenate([[0], LENGTHS.cumsum()])
    causal = torch.ones(LONGEST, LONGEST, dtype=torch.float64).tril()
    call = {"x_offsets": torch.tensor(offsets), "all_timestamps": torch.tensor(seconds), "invalid_attn_mask": causal}
    forward: Any = stack.jagged_forward

    def run_theirs(x: Tensor) -> Tensor:
        output, _ = forward(x=x, **call)
        return output[torch.tensor(compared)]

    splits = np.concatenate([[0], aligned(LENGTHS).cumsum()]).astype(np.int32)
    rows = np.concatenate([np.arange(n) + start for n, start in zip(LENGTHS, splits[:-1], strict=True)])
    age = np.zeros(splits[-1])
    age[rows] = (seconds.max(axis=1, keepdims=True) - seconds)[valid]

    def run_ours(blocks: Stack, x: Array) -> Array:
        packed = jnp.zeros((splits[-1], DIM), x.dtype).at[rows].set(x)
        events = Jagged(packed, jnp.asarray(splits), jnp.asarray(LENGTHS, jnp.int32))
        for block in blocks.layers:
            events = events.replace(block(events, jnp.asarray(age)))
        return events.values[rows[compared]]

    theirs = result_of_theirs(stack, functools.partial(carry, with_time), run_theirs, x, cotangent)
    ours = result_of_ours(make_ours(blocks), weights_of(stack, blocks), run_ours, x, cotangent)
    return differences(theirs, ours)


def main(arguments: list[str] | None = None) -> int:
    """Compares and prints; returns the exit code."""
    return command(arguments, "generative_recommenders", __doc__, compare, NOTES)


if __name__ == "__main__":
    sys.exit(main())
