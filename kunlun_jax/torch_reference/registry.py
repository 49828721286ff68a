"""The available twins: the class of a config decides which model it makes."""

from kunlun_jax.data.dataset import Moments
from kunlun_jax.data.schema import Schema
from kunlun_jax.models.base import ModelConfig
from kunlun_jax.models.config import KunlunConfig
from kunlun_jax.models.hstu import HSTUConfig
from kunlun_jax.models.interformer import InterFormerConfig
from kunlun_jax.models.wukong import WukongConfig
from kunlun_jax.torch_reference.hstu import HSTU
from kunlun_jax.torch_reference.interformer import InterFormer
from kunlun_jax.torch_reference.model import Kunlun
from kunlun_jax.torch_reference.system import System
from kunlun_jax.torch_reference.wukong import Wukong

TWINS: dict[type, type[System]] = {
    KunlunConfig: Kunlun,
    WukongConfig: Wukong,
    InterFormerConfig: InterFormer,
    HSTUConfig: HSTU,
}
"""Class of a config -> the PyTorch model that it makes."""


def make_twin(schema: Schema, config: ModelConfig, *, dense_moments: Moments | None = None) -> System:
    """The PyTorch model of a config.

    Raises:
      TypeError: the config is of a system without a twin.
    """
    kind = TWINS.get(type(config))
    if kind is None:
        raise TypeError(f"config is a {type(config).__name__}; twins are of {[cls.__name__ for cls in TWINS]}")
    return kind(schema, config, dense_moments=dense_moments)  # pyright: ignore[reportCallIssue]  of each subclass
