"""How an operator's `implementation=` becomes a function, and the checks that every operator makes of its operands."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

logger = logging.getLogger(__name__)


@functools.cache
def _log_choice(operator: str, implementation: str, platform: str, reason: str | None = None) -> None:
    """Logs once per process and choice: the cache is what makes it once."""
    because = "" if reason is None else f", for {reason}"
    logger.info("%s: implementation %r chosen for platform %r%s", operator, implementation, platform, because)


def never(q: jax.Array) -> str | None:
    """The refusal of an implementation that runs everywhere."""
    del q


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One backend of an operator.

    Attributes:
      name: what `implementation=` calls it.
      function: the operator for operands that were checked.
      refusal: why it cannot run on such queries here, or None if it can.
    """

    name: str
    function: Callable
    refusal: Callable[[jax.Array], str | None] = never


def choose(operator: str, implementation: str | None, available: Sequence[Implementation], q: jax.Array) -> Callable:
    """The function of the implementation that is named, or of the first that does not refuse.

    Args:
      operator: the operator's name, for messages.
      implementation: name of one of `available`, or None to pick one, which is logged once; on a GPU the log says why
        those before it were passed over.
      available: in order of preference; a new backend is one line there.
      q: the queries.

    Raises:
      ValueError: the name is not among those available, or cannot run; the message lists the names or gives the reason.
    """
    if implementation is not None:
        found = {one.name: one for one in available}.get(implementation)
        if found is None:
            raise ValueError(
                f"{operator}: implementation={implementation!r} does not exist; there are "
                f"{', '.join(repr(one.name) for one in available)}, or None to pick by platform"
            )
        reason = found.refusal(q)
        if reason is not None:
            raise ValueError(f"{operator}: implementation={implementation!r} cannot run: {reason}")
        return found.function
    reasons = []
    for one in available:
        reason = one.refusal(q)
        if reason is None:
            platform = jax.default_backend()
            _log_choice(operator, one.name, platform, "; ".join(reasons) if platform == "gpu" and reasons else None)
            return one.function
        reasons.append(f"{one.name!r} cannot run: {reason}")
    raise ValueError(f"{operator}: no implementation can run: {'; '.join(reasons)}")


def check_offsets(
    operator: str, row_splits: jax.Array, lengths: jax.Array, names: tuple[str, str] = ("row_splits", "lengths")
) -> None:
    """Checks the offsets of packed rows.

    Args:
      operator: the operator's name, for messages.
      row_splits: ``[batch + 1]``.
      lengths: ``[batch]``.
      names: what the operator calls the two, for messages.

    Raises:
      TypeError: one that is not int32.
      ValueError: one does not have exactly one axis, the two do not match, or there is no example.
    """
    splits_name, lengths_name = names
    for name, array in zip(names, (row_splits, lengths), strict=True):
        if array.dtype != jnp.int32:
            raise TypeError(f"{operator}: {name} has dtype {array.dtype}; it must be int32")
        if array.ndim != 1:
            raise ValueError(f"{operator}: {name} has shape {array.shape}; it must have one axis")
    if row_splits.shape[0] != lengths.shape[0] + 1:
        raise ValueError(
            f"{operator}: {splits_name} has {row_splits.shape[0]} entries and {lengths_name} {lengths.shape[0]}; "
            f"{splits_name} must have one more than {lengths_name}"
        )
    if lengths.shape[0] == 0:
        raise ValueError(f"{operator}: {lengths_name} is empty; a batch has at least one example")


def check_operands(
    operator: str,
    arrays: Mapping[str, jax.Array],
    row_splits: jax.Array,
    lengths: jax.Array,
    *,
    grouped: bool = False,
) -> None:
    """Checks what all three operators require of their operands.

    Args:
      operator: the operator's name, for messages.
      arrays: name -> array whose last two axes are heads and dim.
      row_splits: ``[batch + 1]``.
      lengths: ``[batch]``.
      grouped: whether the first array may have a multiple of the heads of the others.

    Raises:
      TypeError: operands that are not floats or not all of one dtype; row_splits or lengths that are not int32.
      ValueError: heads or dim do not match between operands, or row_splits and lengths do not match.
    """
    check_offsets(operator, row_splits, lengths)
    first_name, first = next(iter(arrays.items()))
    if not jnp.issubdtype(first.dtype, jnp.floating):
        raise TypeError(f"{operator}: {first_name} has dtype {first.dtype}; it must be floating")
    for name, array in arrays.items():
        if grouped and array.ndim < 2:
            raise ValueError(f"{operator}: {name} has shape {array.shape}; it must end in heads and dim")
    for name, array in arrays.items():
        if array.dtype != first.dtype:
            raise TypeError(f"{operator}: {name} has dtype {array.dtype} and {first_name} {first.dtype}; use one dtype")
        groups = first.shape[-2] % max(1, array.shape[-2]) == 0 and array.shape[-1] == first.shape[-1]
        if grouped and not groups:
            raise ValueError(
                f"{operator}: {name} has (heads, dim) {array.shape[-2:]} and {first_name} {first.shape[-2:]}; "
                f"the heads of {first_name} must be a multiple of those of {name}, and dim equal"
            )
        if not grouped and array.shape[-2:] != first.shape[-2:]:
            raise ValueError(
                f"{operator}: {name} has (heads, dim) {array.shape[-2:]} and {first_name} {first.shape[-2:]}; "
                "they must be equal"
            )


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of scores and sums for operands of `dtype`: float64 for float64, else float32."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def vary_like(like: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays, each marked as varying over every mesh axis that `like` varies over inside `jax.shard_map`.

    A loop carry that starts from constants has to be marked like what the loop adds to it. A marked operand that the
    devices share gets the sum over the devices as its gradient. Outside `jax.shard_map` nothing changes.
    """
    axes = _varying(like)

    def mark(array):
        missing = tuple(sorted(axes - _varying(array)))
        return jax.lax.pcast(array, missing, to="varying") if missing else array

    return tuple(mark(array) for array in arrays)


def vary_alike(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays, each marked as varying over every mesh axis that any of them varies over."""
    for like in arrays:
        arrays = vary_like(like, *arrays)
    return arrays


def _varying(array: jax.Array) -> frozenset[str]:
    return frozenset(jax.typeof(array).manual_axis_type.varying)
