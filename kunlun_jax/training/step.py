"""The training step: one compiled function from state and batch to state and metric sums.

The state is donated, so tables are updated where they lie. Nothing in the step depends on a value on the host, and its
shapes depend on the schema and the capacities alone, so it compiles once.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, Float

from kunlun_jax.batch import Batch, pytree_dataclass
from kunlun_jax.models.base import Model
from kunlun_jax.nn.embedding import embed, gather_rows, init_tables, lookup, touch
from kunlun_jax.training.metrics import MetricSums
from kunlun_jax.training.optimizer import OptimizerConfig, dense_optimizer, table_optimizer, update_rows


@pytree_dataclass
class TrainState:
    """All that a step changes; it goes into the checkpoint whole.

    Attributes:
      step: int32, steps done.
      params: dense parameters, as `nnx.State`.
      tables: table name -> ``[rows, dim]`` float32.
      optimizer: state of the dense optimizer.
      table_optimizer: table name -> state of the table optimizer, leaves ``[rows]``.
      sums: metric sums since the last multiple of `log_every` steps.
      key: data of the run's random key; each step folds its number in.
    """

    step: Any
    params: Any
    tables: dict[str, Any]
    optimizer: Any
    table_optimizer: dict[str, Any]
    sums: MetricSums
    key: Any


class Trainer:
    """Binds a model to its optimizers.

    Args:
      model: an `nnx.Module`.
      config: rates and schedules.
      steps: steps of the whole run, which the schedule needs.
      log_every: steps over which metric sums run.
      seed: of new tables and of the random key that the steps use.

    Attributes:
      traced: once a step is compiled, the program that it was compiled from, and the shapes of its state and batch.
    """

    def __init__(self, model: Model, config: OptimizerConfig, *, steps: int, log_every: int, seed: int):
        self.schema = model.schema
        self.graphdef, self._params, self._rest = nnx.split(model, nnx.Param, ...)
        self._table_shape = {"dim": model.embedding_dim, "scale": model.embedding_scale}
        self.dense = dense_optimizer(config, steps)
        self.rows = table_optimizer(config)
        self.log_every = log_every
        self.seed = seed
        self._compiled: jax.stages.Compiled | None = None
        self.traced: tuple[ClosedJaxpr, Any] | None = None
        self.predict = jax.jit(self._predict)

    def init(self) -> TrainState:
        """A new state: the model's parameters (copied, since a step donates them) and new tables.

        It is committed to its device, as one from a checkpoint is, so that the step is compiled for the same of both.
        """
        tables_key, steps_key = jax.random.split(jax.random.key(self.seed))
        params = jax.tree.map(jnp.copy, self._params)
        tables = init_tables(self.schema, key=tables_key, **self._table_shape)
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            tables=tables,
            optimizer=self.dense.init(params),
            table_optimizer={name: self.rows.init(table) for name, table in tables.items()},
            sums=MetricSums.zeros(len(self.schema.tasks)),
            key=jax.random.key_data(steps_key),
        )
        return jax.device_put(state, jax.local_devices()[0])

    def renew_tables(self, state: TrainState) -> TrainState:
        """The state with the tables and table optimizer of `init`. As a step does, it takes the old ones."""
        # First, so that there is never room needed for two.
        for leaf in jax.tree.leaves((state.tables, state.table_optimizer)):
            leaf.delete()
        new = self.init()
        return dataclasses.replace(state, tables=new.tables, table_optimizer=new.table_optimizer)

    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of the state, which a restore needs."""
        return jax.eval_shape(self.init)

    def model(self, params: Any) -> Model:
        """The model with these dense parameters."""
        return nnx.merge(self.graphdef, params, self._rest)

    def compile_step(
        self, state: TrainState, batch: Batch, options: dict[str, Any] | None = None
    ) -> jax.stages.Compiled:
        """The step as a program for one shape of state and batch, given as arrays or as their shapes.

        It takes the state (its buffers are donated) and a batch, and returns the next state and the metric sums.
        """
        traced = jax.jit(self._step, donate_argnums=0).trace(state, batch)
        self.traced = traced.jaxpr, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, batch))
        return traced.lower().compile(options)

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, MetricSums]:
        """One step, and the metric sums since the last multiple of `log_every` steps; `state` is gone afterwards.

        The first call compiles and no later one does, whatever it is given: a run that compiled anew at each change of
        shape would stall without a word.

        Raises:
          RuntimeError: state or batch are not of the shapes, dtypes and devices of the first call.
        """
        if self._compiled is None:
            self._compiled = self.compile_step(state, batch)
        try:
            return self._compiled(state, batch)
        except (TypeError, ValueError) as error:  # what jax raises for other shapes and for other devices
            raise RuntimeError(
                f"the training step was compiled for the first batch and cannot take this one: {error}"
            ) from error

    def _loss(self, params, rows, touched, batch: Batch, key) -> tuple[Float[Array, ""], Float[Array, "batch tasks"]]:
        embedded = embed(self.schema, batch, touched, rows)
        logits = self.model(params)(batch, embedded, dropout=nnx.Rngs(dropout=key))
        return weighted_loss(logits, batch), logits

    def _step(self, state: TrainState, batch: Batch) -> tuple[TrainState, MetricSums]:
        touched = touch(self.schema, batch)
        rows = gather_rows(state.tables, touched)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        gradient = jax.grad(self._loss, argnums=(0, 1), has_aux=True)
        (param_gradient, row_gradient), logits = gradient(state.params, rows, touched, batch, key)
        updates, optimizer = self.dense.update(param_gradient, state.optimizer, state.params)
        tables, table_optimizer = dict(state.tables), dict(state.table_optimizer)
        for name, part in touched.items():
            tables[name], table_optimizer[name] = update_rows(
                self.rows, tables[name], table_optimizer[name], part, rows[name], row_gradient[name]
            )
        new = MetricSums.of(logits, batch.labels, batch.weights)
        first = state.step % self.log_every == 0
        sums = jax.tree.map(lambda old, new: jnp.where(first, 0.0, old) + new, state.sums, new)
        state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            tables=tables,
            optimizer=optimizer,
            table_optimizer=table_optimizer,
            sums=sums,
            key=state.key,
        )
        return state, sums

    def _predict(self, state: TrainState, batch: Batch) -> Float[Array, "batch tasks"]:
        return self.model(state.params)(batch, lookup(self.schema, batch, state.tables))


def weighted_loss(logits: Float[Array, "batch tasks"], batch: Batch) -> Float[Array, ""]:
    """Mean LogLoss over examples by weight, summed over tasks; zero for a batch without weight."""
    losses = optax.sigmoid_binary_cross_entropy(logits, batch.labels)
    total = jnp.maximum(batch.weights.sum(), 1e-6)
    return (losses * batch.weights[:, None]).sum() / total
