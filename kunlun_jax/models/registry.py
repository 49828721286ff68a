"""The systems there are: the class of a config says which model it makes."""

from flax import nnx

from kunlun_jax.data.dataset import Moments
from kunlun_jax.data.schema import Schema
from kunlun_jax.models.config import KunlunConfig
from kunlun_jax.models.dcnv2 import DCNv2, DCNv2Config
from kunlun_jax.models.din import DIN, DINConfig
from kunlun_jax.models.dlrm import DLRM, DLRMConfig
from kunlun_jax.models.hstu import HSTU, HSTUConfig
from kunlun_jax.models.interformer import InterFormer, InterFormerConfig
from kunlun_jax.models.kunlun import Kunlun
from kunlun_jax.models.pooled_product import PooledProduct, PooledProductConfig
from kunlun_jax.models.system import System, SystemConfig
from kunlun_jax.models.wukong import Wukong, WukongConfig

ModelConfig = (
    KunlunConfig
    | InterFormerConfig
    | WukongConfig
    | HSTUConfig
    | DLRMConfig
    | DCNv2Config
    | DINConfig
    | PooledProductConfig
)
"""The config of any system. No two have the same field names, so a config.json tells which it is."""

SYSTEMS: dict[type, type[System]] = {
    KunlunConfig: Kunlun,
    InterFormerConfig: InterFormer,
    WukongConfig: Wukong,
    HSTUConfig: HSTU,
    DLRMConfig: DLRM,
    DCNv2Config: DCNv2,
    DINConfig: DIN,
    PooledProductConfig: PooledProduct,
}
"""Class of a config -> the model that it makes."""


def make_model(
    schema: Schema,
    config: SystemConfig,
    *,
    base_rate: tuple[float, ...],
    dense_moments: Moments | None = None,
    rngs: nnx.Rngs,
) -> System:
    """The model of a config; arguments and errors are those of `kunlun_jax.models.kunlun.Kunlun`.

    Raises:
      TypeError: the config is of no system.
    """
    kind = SYSTEMS.get(type(config))
    if kind is None:
        known = [cls.__name__ for cls in SYSTEMS]
        raise TypeError(f"config is a {type(config).__name__}; it must be one of {known}")
    return kind(schema, config, base_rate=base_rate, dense_moments=dense_moments, rngs=rngs)  # pyright: ignore[reportCallIssue]  of each subclass
