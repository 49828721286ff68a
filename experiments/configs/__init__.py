"""Presets: each file holds one `TrainConfig`, named as the file."""

from experiments.configs import (
    base,
    dcnv2,
    din,
    dlrm,
    hstu,
    interformer,
    kuairand,
    large,
    pooled_product,
    small,
    wukong,
)
from kunlun_jax.config import TrainConfig

PRESETS: dict[str, tuple[str, TrainConfig]] = {
    module.__name__.rsplit(".", 1)[-1]: ((module.__doc__ or "").splitlines()[0], module.CONFIG)
    for module in (small, base, large, kuairand, wukong, interformer, hstu, dlrm, dcnv2, din, pooled_product)
}
"""Name -> first line of the file's docstring, and the config."""
