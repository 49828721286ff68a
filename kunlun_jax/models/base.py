"""What training needs of a model and of its config, whatever is inside: the one thing that training knows of models."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from kunlun_jax.batch import Batch
from kunlun_jax.data.dataset import Moments
from kunlun_jax.data.schema import Schema
from kunlun_jax.flops import Part
from kunlun_jax.nn.embedding import Embedded


@runtime_checkable
class Model(Protocol):
    """An `nnx.Module` that makes logits of a batch; its embedding tables are held outside, see `nn.embedding`.

    Attributes:
      schema: of the data, with only the event types that the model reads; tables follow from it.
      embedding_dim: width of every table.
      embedding_scale: standard deviation of new embeddings.
    """

    schema: Schema
    embedding_dim: int
    embedding_scale: float

    def __call__(
        self, batch: Batch, embedded: Embedded, *, dropout: nnx.Rngs | None = None
    ) -> Float[Array, "batch tasks"]:
        """Logits of a batch, float32 or wider; dropout acts only where `dropout` is given."""
        ...

    def parts(self, lengths: Mapping[str, np.ndarray]) -> list[Part]:
        """Parameters and forward FLOPs per example by block, for examples with these history lengths by type."""
        ...


@dataclasses.dataclass(frozen=True)
class ModelConfig(abc.ABC):
    """Base of the config of every model. A run's config.json names the class, so a new one is registered nowhere."""

    @property
    @abc.abstractmethod
    def compute_dtype(self) -> jnp.dtype:
        """Of the computation on this machine; its peak is what a run's MFU is a share of."""

    @abc.abstractmethod
    def build(
        self, schema: Schema, *, base_rate: tuple[float, ...], dense_moments: Moments | None = None, rngs: nnx.Rngs
    ) -> Model:
        """A new model.

        Args:
          schema: of the data.
          base_rate: click rate of each task that the new model predicts, about, whatever the example.
          dense_moments: mean and deviation of the dense features; None: they are taken as they are.
          rngs: stream "params".

        Raises:
          ValueError: the schema or `base_rate` does not fit the config.
        """
