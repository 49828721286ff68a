"""The training step: one compiled function from state and batch to state and metric sums.

The state is donated, so tables are updated where they lie. Nothing in the step depends on a value on the host, and its
shapes depend on the schema and the capacities alone, so it compiles once.

On a mesh every device runs the same program on its share of the batch (`jax.shard_map`), so kernels see what they see
on one device; what has to be added over the devices is added where the code says so.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jax.extend.core import ClosedJaxpr
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float

from kunlun_jax.batch import Batch, pytree_dataclass
from kunlun_jax.models.base import Model
from kunlun_jax.nn.embedding import embed, init_tables, touch
from kunlun_jax.nn.interaction import check_shared
from kunlun_jax.nn.table_rows import is_dealt
from kunlun_jax.parallel import AXES, EXPERTS
from kunlun_jax.training import partition, tables
from kunlun_jax.training.exchange import Route
from kunlun_jax.training.metrics import MetricSums
from kunlun_jax.training.optimizer import OptimizerConfig, dense_optimizer, table_optimizer
from kunlun_jax.training.placement import CUT, over_devices, put, shardings
from kunlun_jax.training.skipped import NO_ROW, Skipped, all_finite, only_if


@pytree_dataclass
class TrainState:
    """All that a step changes; it goes into the checkpoint whole.

    Attributes:
      step: int32, steps done.
      params: dense parameters, as `nnx.State`.
      tables: table name -> ``[stored rows, dim]`` float32, see `nn.table_rows`.
      optimizer: state of the dense optimizer.
      table_optimizer: table name -> state of the table optimizer, leaves ``[stored rows]``.
      sums: metric sums since the last multiple of `log_every` steps.
      skipped: the skipped steps since then.
      key: data of the run's random key; each step folds its number in.
    """

    step: Any
    params: Any
    tables: dict[str, Any]
    optimizer: Any
    table_optimizer: dict[str, Any]
    sums: MetricSums
    skipped: Skipped
    key: Any


@pytree_dataclass
class Progress:
    """What a log line tells of the steps since the last multiple of `log_every`, on the device until it is fetched.

    Attributes:
      sums: over the examples of all steps that were not skipped.
      skipped: those that were.
    """

    sums: MetricSums
    skipped: Skipped


class Trainer:
    """Binds a model to its optimizers.

    Args:
      model: an `nnx.Module`.
      config: rates and schedules.
      steps: steps of the whole run, which the schedule needs.
      log_every: steps over which metric sums run.
      seed: of new tables and of the random key that the steps use.
      mesh: devices that share every batch, see `kunlun_jax.parallel`; None for one device.

    Attributes:
      traced: once a step is compiled, the program that it was compiled from, and the shapes of its state and batch.
    """

    def __init__(
        self, model: Model, config: OptimizerConfig, *, steps: int, log_every: int, seed: int, mesh: Mesh | None = None
    ):
        self.schema = model.schema
        self.graphdef, self._params, self._rest = nnx.split(model, nnx.Param, ...)
        self._table_shape = {"dim": model.embedding_dim, "scale": model.embedding_scale}
        self.mesh = mesh
        self._axis = None if mesh is None else AXES
        if mesh is None:
            self.dense = dense_optimizer(config, steps)
        else:
            check_shared(model, mesh.shape[EXPERTS])
            self._places = partition.specs(self._params, mesh)
            self.dense = dense_optimizer(config, steps, lambda gradient: partition.norm(gradient, self._places))
        self.rows = table_optimizer(config)
        self.log_every = log_every
        self.seed = seed
        self._compiled: jax.stages.Compiled | None = None
        self.traced: tuple[ClosedJaxpr, Any] | None = None
        self.predict = jax.jit(over_devices(self._predict, self.schema, mesh, gives="logits"))

    def init(self) -> TrainState:
        """A new state: the model's parameters (copied, since a step donates them) and new tables.

        It is committed to its device, as one from a checkpoint is, so that the step is compiled for the same of both.
        """
        tables_key, steps_key = jax.random.split(jax.random.key(self.seed))
        params = jax.tree.map(jnp.copy, self._params)
        tables = init_tables(self.schema, key=tables_key, mesh=self.mesh, **self._table_shape)
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            tables=tables,
            optimizer=self.dense.init(params),
            table_optimizer={name: self._new_rows(name, table) for name, table in tables.items()},
            sums=MetricSums.zeros(len(self.schema.tasks)),
            skipped=Skipped.none(),
            key=jax.random.key_data(steps_key),
        )
        return jax.device_put(state, shardings(self.schema, state, self.mesh))

    def _new_rows(self, name: str, table: Float[Array, "rows dim"]) -> Any:
        """A new state of the table optimizer, made where the rows of the table lie."""
        if self.mesh is None or not is_dealt(self.schema.tables[name].rows):
            return self.rows.init(table)
        return jax.jit(self.rows.init, out_shardings=NamedSharding(self.mesh, CUT))(table)

    def put(self, batch: Batch) -> Batch:
        """A batch of this process's loader on the devices, each its own share."""
        return put(batch, self.mesh)

    def renew_tables(self, state: TrainState) -> TrainState:
        """The state with the tables and table optimizer of `init`. As a step does, it takes the old ones."""
        # First, so that there is never room needed for two.
        for leaf in jax.tree.leaves((state.tables, state.table_optimizer)):
            leaf.delete()
        new = self.init()
        return dataclasses.replace(state, tables=new.tables, table_optimizer=new.table_optimizer)

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and places of the state, which a restore needs."""
        state = jax.eval_shape(self.init)
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            state,
            shardings(self.schema, state, self.mesh),
        )

    def model(self, params: Any) -> Model:
        """The model with these dense parameters."""
        return nnx.merge(self.graphdef, params, self._rest)

    def compile_step(
        self, state: TrainState, batch: Batch, options: dict[str, Any] | None = None
    ) -> jax.stages.Compiled:
        """The step as a program for one shape of state and batch, given as arrays or as their shapes.

        It takes the state (its buffers are donated) and a batch, and returns the next state and the `Progress`.
        """
        step = over_devices(self._step, self.schema, self.mesh)
        traced = jax.jit(step, donate_argnums=0).trace(state, batch)
        self.traced = traced.jaxpr, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (state, batch))
        return traced.lower().compile(options)

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Progress]:
        """One step, and what has come since the last multiple of `log_every` steps; `state` is gone afterwards.

        A step whose loss or gradient is not finite on any device changes nothing of what is trained, nor the metric
        sums; it is counted as skipped.

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

    def sum(self, tree: Any) -> Any:
        """Sums over the devices, inside what `over_devices` runs."""
        return tree if self._axis is None else lax.psum(tree, self._axis)

    def sum_gradient(self, gradient: Any) -> Any:
        """The gradient of the dense parameters, over all devices, from that of this device's share of the loss."""
        return gradient if self._axis is None else partition.add(gradient, self._places)

    def whole(self, params: Any) -> Any:
        """The dense parameters that this device uses, from its parts of them."""
        return params if self._axis is None else partition.gather(params, self._places)

    def read(self, state: TrainState, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Route]]:
        """What `loss` takes after the dense parameters, and the ways by which rows of large tables came."""
        touched = touch(self.schema, batch)
        rows, ways = tables.read(self.schema, state.tables, touched, self._axis)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        if self._axis is not None:
            key = jax.random.fold_in(key, lax.axis_index(self._axis))
        return (rows, touched, batch, LossWeights.of(batch, self.sum), key), ways

    def loss(
        self, params: Any, rows: Any, touched: Any, batch: Batch, weights: "LossWeights", key: jax.Array
    ) -> tuple[Float[Array, ""], Float[Array, "batch tasks"]]:
        """The loss of a device's share of a batch, and its logits; arguments as `read` gives them."""
        embedded = embed(self.schema, batch, touched, rows)
        logits = self.model(self.whole(params))(batch, embedded, dropout=nnx.Rngs(dropout=key))
        return weighted_loss(logits, batch, weights), logits

    def _step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Progress]:
        inputs, ways = self.read(state, batch)
        rows, touched, *_ = inputs
        gradient = jax.value_and_grad(self.loss, argnums=(0, 1), has_aux=True)
        (loss, logits), (param_gradient, row_gradient) = gradient(state.params, *inputs)
        param_gradient = self.sum_gradient(param_gradient)
        broken = self.sum((~all_finite((loss, param_gradient, row_gradient))).astype(jnp.int32))
        # Behind a barrier, since XLA would otherwise work it out anew in every update that depends on it.
        sound = lax.optimization_barrier(broken == 0)
        updates, optimizer = only_if(sound, self.dense).update(param_gradient, state.optimizer, state.params)
        row_optimizer = only_if(sound, self.rows)
        new_tables, table_optimizer = tables.update(
            row_optimizer, state.tables, state.table_optimizer, touched, rows, row_gradient, ways, self._axis
        )
        new = self.sum(MetricSums.of(logits, batch.labels, batch.weights))
        first = state.step % self.log_every == 0
        sums = jax.tree.map(lambda old, new: jnp.where(first, 0.0, old) + jnp.where(sound, new, 0.0), state.sums, new)
        skipped = state.skipped.after(state.step + 1, sound, first, *self._not_finite(logits, batch))
        state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            tables=new_tables,
            optimizer=optimizer,
            table_optimizer=table_optimizer,
            sums=sums,
            skipped=skipped,
            key=state.key,
        )
        return state, Progress(sums, skipped)

    def _not_finite(self, logits: Float[Array, "batch tasks"], batch: Batch) -> tuple[jax.Array, jax.Array]:
        """How many examples have weight and a logit that is not finite, and the least row number of them."""
        found = (batch.weights > 0) & ~jnp.isfinite(logits).all(axis=1)
        first = jnp.where(found, jnp.asarray(batch.row), NO_ROW).min()
        return self.sum(found.sum(dtype=jnp.int32)), first if self._axis is None else lax.pmin(first, self._axis)

    def _predict(self, state: TrainState, batch: Batch) -> Float[Array, "batch tasks"]:
        touched = touch(self.schema, batch)
        rows, _ = tables.read(self.schema, state.tables, touched, self._axis)
        return self.model(self.whole(state.params))(batch, embed(self.schema, batch, touched, rows))


class LossWeights(NamedTuple):
    """What each label weighs in the loss.

    Attributes:
      labels: ``[batch, tasks]``; 0 where there is no label, and elsewhere the example's weight, times the weight of all
        examples over that of those with this label: exactly the example's weight in a task whose labels are all there.
      total: weight of all examples, by which the weighted sum of losses is divided.
    """

    labels: Float[Array, "batch tasks"]
    total: Float[Array, ""]

    @classmethod
    def of(cls, batch: Batch, add: Callable[[Any], Any] = lambda x: x) -> "LossWeights":
        """Those of a batch; where it is one device's share, `add` sums over the devices."""
        weights, there = jnp.asarray(batch.weights)[:, None], ~jnp.isnan(batch.labels)
        own = jnp.where(there, weights, 0.0)
        total, known, missing = add((batch.weights.sum(), own.sum(0), jnp.where(there, 0.0, weights).sum(0)))
        scale = jnp.where(missing > 0, total / jnp.maximum(known, 1e-6), 1.0)
        return cls(own * scale[None], total)


def weighted_loss(
    logits: Float[Array, "batch tasks"], batch: Batch, weights: LossWeights | None = None
) -> Float[Array, ""]:
    """Mean LogLoss over the examples that have a label, by weight, summed over tasks; zero for a batch without weight.

    `weights` are those of the whole batch, where this is one device's share of it.
    """
    weights = LossWeights.of(batch) if weights is None else weights
    losses = optax.sigmoid_binary_cross_entropy(logits, jnp.nan_to_num(batch.labels))
    return (losses * weights.labels).sum() / jnp.maximum(weights.total, 1e-6)
