"""Optimizers: Adam with warm-up for the dense parameters, row-wise Adagrad for the tables.

Row-wise Adagrad keeps one number a row, the running sum of the row's mean squared gradient, and is written as an
optax transformation whose state leaves all have a leading row axis. `update_rows` runs any such transformation on
the rows that a batch touched and writes rows and state back in place, so a step costs the same for any table size.

Source: Wukong (P) for the pair of optimizers; rates O.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from kunlun_jax.nn.embedding import Touched
from kunlun_jax.ranges import at_least, check, rate, within


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Learning rates and schedules."""

    learning_rate: float = 1e-3
    """Peak rate of Adam on the dense parameters."""
    warmup: float = 0.1
    """Fraction of all steps over which Adam's rate rises linearly from 0 (Wukong: 0.1)."""
    decay: Literal["none", "linear", "cosine"] = "none"
    """How Adam's rate falls from its peak to 0 after warm-up."""
    b1: float = 0.9
    """Adam's decay of the first moment."""
    b2: float = 0.999
    """Adam's decay of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the dense parameters, per step, times the rate."""
    clip_norm: float = 0.0
    """Largest global norm of the dense gradient; 0: no clipping."""
    table_learning_rate: float = 0.05
    """Rate of row-wise Adagrad on the tables (Wukong: 0.1)."""
    table_initial: float = 0.0
    """Initial accumulator of row-wise Adagrad."""
    table_epsilon: float = 1e-8
    """Added to the root of the accumulator."""

    RANGES: ClassVar = {
        "learning_rate": at_least(0),
        "warmup": within(0, 1),
        "b1": rate(),
        "b2": rate(),
        "weight_decay": at_least(0),
        "clip_norm": at_least(0),
        "table_learning_rate": at_least(0),
        "table_initial": at_least(0),
        "table_epsilon": at_least(0),
    }

    def __post_init__(self):
        check(self, "optimizer")
        if not self.table_initial + self.table_epsilon > 0:
            raise ValueError(
                "optimizer.table_initial and optimizer.table_epsilon are both 0, which makes 0 / 0 of a row without "
                "gradient; one must be above 0"
            )


def dense_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Adam's rate by step number, counted from 0, over a run of `steps`."""
    warmup = round(config.warmup * steps)
    rest = max(steps - warmup, 1)
    after = {
        "none": optax.constant_schedule(config.learning_rate),
        "linear": optax.linear_schedule(config.learning_rate, 0.0, rest),
        # Written out, since optax's mixes a step count with a float, which strict promotion refuses.
        "cosine": lambda step: config.learning_rate * (0.5 + 0.5 * jnp.cos(jnp.pi * jnp.minimum(step / rest, 1.0))),
    }[config.decay]
    if not warmup:
        return after
    rise = optax.linear_schedule(config.learning_rate / warmup, config.learning_rate, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup])


def dense_optimizer(
    config: OptimizerConfig, steps: int, norm: Callable[[Any], Array] = optax.tree.norm
) -> optax.GradientTransformation:
    """Adam (AdamW with `weight_decay`) for a run of `steps`.

    Args:
      config: rates and schedules.
      steps: of the whole run.
      norm: of a gradient; where it lies in parts on many devices, it adds over them.
    """
    clip = [_clip(config.clip_norm, norm)] if config.clip_norm else []
    schedule = dense_schedule(config, steps)
    adam = optax.adamw(schedule, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay)
    return optax.chain(*clip, promoting(adam))


def _clip(most: float, norm: Callable[[Any], Array]) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`, with a norm of one's own."""

    def update(updates, state, params=None):
        del params
        length = norm(updates)
        return jax.tree.map(lambda x: jnp.where(length < most, x, x / length.astype(x.dtype) * most), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def promoting(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """`transformation` under JAX's standard promotion of dtypes.

    The bias correction of optax 0.2.8's Adam mixes a step count (int32) with a Python float, which strict promotion
    refuses. It alone is let off, so that everything else may run strictly.
    """

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return transformation.update(updates, state, params)

    return optax.GradientTransformation(transformation.init, update)


class RowWiseAdagradState(NamedTuple):
    """Sum of mean squared gradients of each row."""

    accumulator: Any


def row_wise_adagrad(learning_rate: float, initial: float = 0.0, epsilon: float = 1e-8) -> optax.GradientTransformation:
    """Adagrad with one accumulator per row of a ``[rows, dim]`` parameter.

    ``accumulator += mean(g^2);  row -= learning_rate * g / (sqrt(accumulator) + epsilon)``. A row whose gradient is
    zero keeps its value and its accumulator.
    """

    def init(params):
        return RowWiseAdagradState(jax.tree.map(lambda p: jnp.full(p.shape[:1], initial, p.dtype), params))

    def update(updates, state, params=None):
        del params
        accumulator = jax.tree.map(lambda g, s: s + jnp.square(g).mean(-1), updates, state.accumulator)
        updates = jax.tree.map(lambda g, s: -learning_rate * g / (jnp.sqrt(s) + epsilon)[:, None], updates, accumulator)
        return updates, RowWiseAdagradState(accumulator)

    return optax.GradientTransformation(init, update)


def table_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Row-wise Adagrad as the config says."""
    return row_wise_adagrad(config.table_learning_rate, config.table_initial, config.table_epsilon)


def update_rows(
    optimizer: optax.GradientTransformation,
    table: Float[Array, "rows dim"],
    state: Any,
    touched: Touched,
    old: Float[Array, "touched dim"],
    gradient: Float[Array, "touched dim"],
) -> tuple[Float[Array, "rows dim"], Any]:
    """Runs `optimizer` on the touched rows of `table` and of every leaf of `state`.

    Args:
      optimizer: its state leaves all have the rows of the table as their first axis.
      table: all rows.
      state: of `optimizer`, for the whole table.
      touched: says which rows.
      old: ``table[touched.rows]``, which the forward pass read already; not read where all rows are touched.
      gradient: with respect to `old`.
    """
    if touched.rows is None:
        updates, state = optimizer.update(gradient, state)
        return table + jnp.asarray(updates), state
    # Fill rows lie past the table: "clip" reads something harmless for them, "drop" writes nothing.
    part = jax.tree.map(lambda leaf: leaf.at[touched.rows].get(mode="clip", indices_are_sorted=True), state)
    updates, part = optimizer.update(gradient, part)

    def put(leaf: jax.Array, new: jax.Array) -> jax.Array:
        return leaf.at[touched.rows].set(new, mode="drop", indices_are_sorted=True, unique_indices=True)

    return put(table, old + jnp.asarray(updates)), jax.tree.map(put, state, part)
