"""Steps that change nothing because their loss or gradient is not finite: how the step tells, and what is kept of them.

One example can make a gradient that is not finite, and parameters that took it would never be finite again. So the step
leaves everything as it was, goes on with the next batch, and notes its number and which example it was. The notes are
part of the training state, so a run that was cut off logs the same, and they come to the host with the metric sums:
the step itself waits for nothing.

Source: ours (O).
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int

from kunlun_jax.batch import pytree_dataclass
from kunlun_jax.data.dataset import Dataset

KEPT = 16
"""Skipped steps between two log lines that are noted one by one; further ones are only counted."""

NO_ROW = np.iinfo(np.int32).max
"""Stands for the row of a step in which every example had finite logits."""


@pytree_dataclass
class Skipped:
    """The skipped steps since the last multiple of `log_every` steps.

    Attributes:
      count: int32, how many there are.
      streak: int32, how many steps in a row, up to the last one, were skipped; since the run began, not the log line.
      steps: int32 ``[KEPT]``, the numbers, from 1, of the first `count` of them.
      examples: int32 ``[KEPT]``, how many examples of each had a logit that is not finite.
      rows: int32 ``[KEPT]``, the least row number (`Batch.row`) of those examples, or `NO_ROW`.
    """

    count: Int[Array | np.ndarray, ""]
    streak: Int[Array | np.ndarray, ""]
    steps: Int[Array | np.ndarray, " kept"]
    examples: Int[Array | np.ndarray, " kept"]
    rows: Int[Array | np.ndarray, " kept"]

    @classmethod
    def none(cls) -> "Skipped":
        """No step. Arrays of their own each, since a step donates them."""
        return cls(*(jnp.zeros(shape, jnp.int32) for shape in ((), (), (KEPT,), (KEPT,), (KEPT,))))

    def after(
        self,
        step: Int[Array, ""],
        sound: Bool[Array, ""],
        first: Bool[Array, ""],
        examples: Int[Array, ""],
        row: Int[Array, ""],
    ) -> "Skipped":
        """What there is after one more step.

        Args:
          step: its number, from 1.
          sound: whether it was not skipped.
          first: whether it is the first of a log line.
          examples: how many of its examples had a logit that is not finite.
          row: the least row number of those.
        """
        count = jnp.where(first, 0, self.count)
        # A selection, since a scatter would be counted among what the tables move.
        here = (jnp.arange(KEPT) == count) & ~sound
        kept = ((self.steps, step), (self.examples, examples), (self.rows, row))
        return Skipped(
            count + (~sound).astype(jnp.int32),
            jnp.where(sound, 0, self.streak + 1),
            *(jnp.where(here, new, old) for old, new in kept),
        )


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether all arrays of `tree` are finite, and the sum of squares of each is.

    A gradient whose squares overflow does lasting harm, too: Adam and Adagrad would keep the infinity and divide by it.
    The largest entry bounds the sum, by the number of entries times its square: XLA makes fewer kernels of a maximum
    than of a sum. Of a million float32 entries none may be above 1.8e16.
    """

    def bounded(leaf: jax.Array) -> Bool[Array, ""]:
        most = (float(jnp.finfo(leaf.dtype).max) / max(leaf.size, 1)) ** 0.5
        return jnp.abs(leaf).max(initial=0) <= most  # a maximum keeps NaN, which no number bounds

    return jnp.stack([bounded(leaf) for leaf in jax.tree.leaves(tree)]).all()


def only_if(sound: Bool[Array, ""], optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optimizer` where `sound` holds; else one that keeps its state and leaves every bit of the parameters.

    The update is then -0.0, for adding 0.0 would turn -0.0 into it. So only what the optimizer sees is selected: of a
    table the rows that were touched, never the table.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        new, new_state = optimizer.update(updates, state, params)
        new = jax.tree.map(lambda x: jnp.where(sound, x, -0.0), new)
        return new, jax.tree.map(lambda x, old: jnp.where(sound, x, old), new_state, state)

    return optax.GradientTransformation(optimizer.init, update)


class Diverged(ValueError):
    """The run skips one step after the other."""


def refuse_streak(step: int, streak: int | np.ndarray, most: int) -> None:
    """`Diverged` if `streak` steps in a row, up to `step`, were skipped, and `most` is reached."""
    if streak >= most:
        raise Diverged(
            f"step {step}: the last {streak} steps were skipped, since loss or gradient was not finite, and "
            f"run.max_skipped_streak is {most}; what was saved before them stays. Lower optimizer.learning_rate or "
            "optimizer.table_learning_rate, set optimizer.clip_norm, or have --run.debug-nans name the layer"
        )


def told(step: int, skipped: Skipped) -> str:
    """What a warning says of skipped steps that the line of `step` counts."""
    known = skipped.steps[: int(skipped.count)]
    if skipped.count == 1:
        return f"step {known[0]} was skipped, since its loss or gradient was not finite"
    last = known[-1] if skipped.count <= KEPT else step
    return f"{skipped.count} steps from {known[0]} to {last} were skipped, since loss or gradient was not finite"


def lines_of(
    step: int, skipped: Skipped, dataset: Dataset, rows: Callable[[int], np.ndarray]
) -> Iterator[dict[str, Any]]:
    """Lines of ``skipped.jsonl``: what was in the batches of the skipped steps.

    Args:
      step: of the metrics line that counts them; `Skipped.steps` holds the first `KEPT`, and only these have a line.
      skipped: those steps, on the host.
      dataset: trained on.
      rows: number of a training batch, from 0 -> row numbers of its examples.

    Yields:
      ``step`` as above; ``skipped``, the number of the skipped step; ``not_finite``, how many examples had a logit that
      is not finite, 0 where it was the gradient alone, and ``first`` of them, or null; ``examples``, all of the batch.
      Examples are given by their rows in the training split, from 0 over its files in their order, and by the schema's
      keys. Operators work on tiles of events of several examples, so one that is not finite may spoil its neighbours.
    """
    start = dataset.split("train").start

    def named(index: np.ndarray) -> dict[str, Any]:
        keys = {name: values.tolist() for name, values in dataset.source.keys(index).items()}
        return {"rows": (index - start).tolist(), "keys": keys}

    for number in range(min(int(skipped.count), KEPT)):
        row = skipped.rows[number]
        first = None if row == NO_ROW else named(np.asarray([row], np.int64))
        taken = int(skipped.steps[number])
        yield {
            "step": step,
            "skipped": taken,
            "not_finite": int(skipped.examples[number]),
            "first": first,
            "examples": named(rows(taken - 1)),
        }
