"""Packed sequences cut and joined: tokens before or after, histories merged by time, first and last rows, and tails.

Every result is packed as `kunlun_jax.batch.Jagged` asks: each example starts on a multiple of 8 rows and nothing is
padded to the longest. `n` more tokens in a sequence take at most n rows, rounded up to a multiple of 8, so the capacity
of the result is the old one plus that for each example; it is static.

Source: ours (O); InterFormer's CLS tokens come first (P), HSTU's candidate last (P), and OneTrans lets only the tail
of a sequence go on (P).
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from kunlun_jax.batch import Jagged
from pallas_kernels import jagged
from pallas_kernels.jagged import ROW_ALIGNMENT, zero_padding


def prepend(tokens: Float[Array, "batch tokens dim"], events: Jagged) -> Jagged:
    """The tokens of each example, then its events; rows that hold neither are zero."""
    count = tokens.shape[1]
    rows, splits, lengths = _room(events, count)
    example, position, mask = _places(rows, splits, lengths)
    event = jnp.asarray(events.row_splits)[:-1][example] + position - count
    values = _rows_of(
        (tokens, events.values),
        jnp.where(position < count, example * count + position, tokens.shape[0] * count + event),
        mask,
    )
    return Jagged(values, splits, lengths)


def append(events: Jagged, tokens: Float[Array, "batch tokens dim"]) -> Jagged:
    """The events of each example, then its tokens; rows that hold neither are zero."""
    count = tokens.shape[1]
    rows, splits, lengths = _room(events, count)
    example, position, mask = _places(rows, splits, lengths)
    after = position - jnp.asarray(events.lengths)[example]
    event = jnp.asarray(events.row_splits)[:-1][example] + position
    values = _rows_of(
        (tokens, events.values),
        jnp.where(after >= 0, example * count + after, tokens.shape[0] * count + event),
        mask,
    )
    return Jagged(values, splits, lengths)


def merge(events: Mapping[str, Jagged], age: Mapping[str, Float[Array, " _"]]) -> tuple[Jagged, Float[Array, " rows"]]:
    """The events of several types of each example in one sequence, oldest first, and the age of each row.

    Events of the same age are ordered by the name of their type; within a type the order stays. The cost is that of
    sorting all rows, and the capacity is that of all types together.

    Raises:
      ValueError: there is no event type.
    """
    if not events:
        raise ValueError("events is empty; it must hold at least one event type")
    names = sorted(events)
    lengths = sum((jnp.asarray(events[name].lengths) for name in names[1:]), jnp.asarray(events[names[0]].lengths))
    batch, rows = lengths.shape[0], sum(-(-events[name].rows // ROW_ALIGNMENT) * ROW_ALIGNMENT for name in names)
    splits = _splits(lengths)
    mask = jnp.concatenate([events[name].mask() for name in names])
    example = jnp.where(mask, jnp.concatenate([events[name].example_ids() for name in names]), batch)
    ages = jnp.concatenate([age[name] for name in names])
    # Rows without an event come last, as rows of an example beyond the batch.
    order = jnp.lexsort((-ages, example)).astype(jnp.int32)
    first = jnp.cumsum(lengths, dtype=jnp.int32) - lengths
    example, position, mask = _places(rows, splits, lengths)
    source = order.at[first[example] + position].get(mode="clip")
    values = jnp.concatenate([events[name].values for name in names])
    merged = zero_padding(values.at[source].get(mode="clip"), mask)
    return Jagged(merged, splits, lengths), jnp.where(mask, ages.at[source].get(mode="clip"), jnp.zeros((), ages.dtype))


def first_rows(events: Jagged, count: int) -> Float[Array, "batch count dim"]:
    """The first `count` rows of each example, oldest first; zeros where it has fewer."""
    index = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (events.lengths.shape[0], count))
    return _pick(events, index)


def last_rows(events: Jagged, count: int) -> Float[Array, "batch count dim"]:
    """The last `count` rows of each example, the newest last; zeros before them where it has fewer."""
    return _pick(events, jnp.asarray(events.lengths)[:, None] + jnp.arange(-count, 0, dtype=jnp.int32)[None, :])


def tail(events: Jagged, count: int) -> Jagged:
    """The newest `count` rows of each example, all where it has fewer, repacked; rows that hold none are zero.

    The capacity is that of the events, or that of `count` rows per example where that is less.
    """
    lengths = jnp.minimum(jnp.asarray(events.lengths), count)
    each = -(-count // ROW_ALIGNMENT) * ROW_ALIGNMENT
    rows = min(-(-events.rows // ROW_ALIGNMENT) * ROW_ALIGNMENT, lengths.shape[0] * each)
    splits = _splits(lengths)
    return Jagged(_tail_values(events, rows, splits, lengths, 0), splits, lengths)


def tail_as(events: Jagged, last: Jagged, *, skip: int) -> Jagged:
    """The newest rows of each example before its last `skip`, as many as `last` has and packed the same way."""
    splits, lengths = jnp.asarray(last.row_splits), jnp.asarray(last.lengths)
    return last.replace(_tail_values(events, last.rows, splits, lengths, skip))


def spread(last: Jagged, events: Jagged) -> Float[Array, "rows dim"]:
    """Rows of `last`, a tail of `events`, at their places in the latter; all other rows are zero."""
    if not last.rows:  # XLA cannot take from an array without rows
        return jnp.zeros((events.rows, last.values.shape[1]), last.values.dtype)
    example, position, mask = _places(events.rows, jnp.asarray(events.row_splits), jnp.asarray(events.lengths))
    position -= (jnp.asarray(events.lengths) - jnp.asarray(last.lengths))[example]
    source = jnp.asarray(last.row_splits)[:-1][example] + jnp.maximum(position, 0)
    return zero_padding(last.values.at[source].get(mode="clip"), mask & (position >= 0))


def no_rows(batch: int, dim: int, dtype) -> Jagged:
    """Empty sequences, with a capacity of zero rows."""
    return Jagged(jnp.zeros((0, dim), dtype), jnp.zeros(batch + 1, jnp.int32), jnp.zeros(batch, jnp.int32))


def _pick(events: Jagged, index: Int[Array, "batch count"]) -> Float[Array, "batch count dim"]:
    """Rows of each example by their position in it, zeros outside."""
    inside = (index >= 0) & (index < jnp.asarray(events.lengths)[:, None])
    row = jnp.where(inside, jnp.asarray(events.row_splits)[:-1, None] + index, 0)
    picked = events.values.at[row].get(mode="clip")
    return jnp.where(inside[:, :, None], picked, jnp.zeros((), picked.dtype))


def _tail_values(
    events: Jagged, rows: int, splits: Int[Array, " splits"], lengths: Int[Array, " batch"], skip: int
) -> Float[Array, "rows dim"]:
    """Repacked by `splits`: the newest rows of each example before its last `skip`, as many as `lengths` says."""
    if not rows:
        return events.values[:0]
    example, position, mask = _places(rows, splits, lengths)
    first = jnp.asarray(events.row_splits)[:-1] + jnp.asarray(events.lengths) - (lengths + skip)
    return zero_padding(events.values.at[first[example] + position].get(mode="clip"), mask)


def _splits(lengths: Int[Array, " batch"]) -> Int[Array, " splits"]:
    """First rows of sequences of these lengths, and the end; all multiples of 8."""
    aligned = (lengths + (ROW_ALIGNMENT - 1)) // ROW_ALIGNMENT * ROW_ALIGNMENT
    return jnp.pad(jnp.cumsum(aligned, dtype=jnp.int32), (1, 0))


def _room(events: Jagged, count: int) -> tuple[int, Int[Array, " splits"], Int[Array, " batch"]]:
    """Capacity, first rows and lengths of the sequences with `count` more rows."""
    lengths = jnp.asarray(events.lengths) + count
    each = -(-count // ROW_ALIGNMENT) * ROW_ALIGNMENT
    rows = -(-events.rows // ROW_ALIGNMENT) * ROW_ALIGNMENT + each * lengths.shape[0]
    return rows, _splits(lengths), lengths


def _places(
    rows: int, splits: Int[Array, " splits"], lengths: Int[Array, " batch"]
) -> tuple[Int[Array, " rows"], Int[Array, " rows"], Bool[Array, " rows"]]:
    """Example of each row (the last one for rows past its end), position in it, and whether the row is in use."""
    example = jnp.minimum(jagged.example_ids(splits, rows), lengths.shape[0] - 1)
    position = jnp.arange(rows, dtype=jnp.int32) - splits[example]
    return example, position, position < lengths[example]


def _rows_of(
    parts: Sequence[Float[Array, "..."]], source: Int[Array, " rows"], mask: Bool[Array, " rows"]
) -> Float[Array, "rows dim"]:
    """Rows `source` of tokens ``[batch, tokens, dim]`` and events ``[rows, dim]`` concatenated."""
    tokens, values = parts
    flat = jnp.concatenate([rearrange(tokens, "batch tokens dim -> (batch tokens) dim"), values])
    return zero_padding(flat.at[source].get(mode="clip"), mask)
