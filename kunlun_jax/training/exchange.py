"""Rows of a large table that lies on many devices: fetched by those that read them, updated by the one that has them.

Each device has an equal run of the stored rows (`kunlun_jax.nn.table_rows`) and reads some ids, those of its share of
the batch. It sends every other device the ids whose rows are there, in room for a little more than an even share, and
gets the rows; the gradients go the same way, and the owner adds up those of one row before its optimizer sees them. So
a device sends and receives about as many rows as it reads, or `LEAST` for each device if that is more, and nothing is
as large as the table.

Ids that are uneven beyond that room go in rounds. The id alone decides in which one, so that all gradients of a row
arrive together. Nothing is ever left out, and where ids are spread, as dealt rows are, there is one round.

Everything here runs inside `jax.shard_map` over the mesh axes that are named.

Source: ours (O).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from kunlun_jax.nn.embedding import Touched
from kunlun_jax.parallel import Axis
from kunlun_jax.training.optimizer import update_rows

SLACK = 1.25
"""Room for ids to one device, over an even share."""

LEAST = 64
"""Least room for ids to one device: few ids are uneven by chance."""


class Route(NamedTuple):
    """How the ids of this device go to their owners.

    Attributes:
      local: ``[ids]`` int32, row of each id on its owner.
      turn: ``[ids]`` uint32, the round in which it goes; past the last one for ids that only fill up.
      slot: ``[ids]`` int32, where it stands in what is sent in that round, ``owner * room + place``.
      rounds: uint32, how many there are on all devices.
      room: static, ids to each owner in a round.
      devices: static, how many there are.
    """

    local: Int[Array, " ids"]
    turn: jax.Array
    slot: Int[Array, " ids"]
    rounds: jax.Array
    room: int
    devices: int


def route(ids: Int[Array, " ids"], rows: int, axis: Axis) -> Route:
    """The way of `ids`, unique rows of a table with `rows` rows on each device; ids past the table only fill up."""
    devices = lax.axis_size(axis)
    room = min(ids.size, max(LEAST, round(ids.size / devices * SLACK)))
    owner = jnp.minimum(ids // rows, devices).astype(jnp.int32)
    local = (ids % rows).astype(jnp.int32)
    mixed = _mixed(local)

    def more(carry):
        """Twice as many rounds, at first one; place of each id among those of its owner and round; whether all fit."""
        bits, *_ = carry
        bits += 1
        turn = mixed & ((jnp.uint32(1) << bits) - 1)
        order = jnp.lexsort((turn, owner))
        new = (jnp.diff(owner[order], prepend=-1) != 0) | (jnp.diff(turn[order], prepend=turn[order[0]]) != 0)
        place = number - lax.cummax(jnp.where(new, number, 0))
        fullest = jnp.where(owner[order] < devices, place, 0).max(initial=0)
        return bits, turn, jnp.zeros_like(number).at[order].set(place), lax.pmax(fullest, axis) >= room

    number = jnp.arange(ids.size, dtype=jnp.int32)
    # With 2**32 rounds every row would have its own, so this ends.
    start = ~jnp.uint32(0), mixed, number, jnp.bool(True)
    bits, turn, place, _ = lax.while_loop(lambda carry: carry[-1], more, start)
    rounds = jnp.uint32(1) << bits
    turn = jnp.where(owner < devices, turn, rounds)
    return Route(local, turn, owner * room + place, rounds, room, devices)


def _mixed(x: Int[Array, " ids"]) -> jax.Array:
    """The finaliser of MurmurHash3, a bijection of uint32."""
    x = x.astype(jnp.uint32)
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _send(way: Route, number: jax.Array, values: jax.Array, fill: Any, axis: Axis) -> jax.Array:
    """Brings the `values` of one round to the owners of their ids: ``[devices * room, ...]``, in order of sender."""
    slot = jnp.where(way.turn == number, way.slot, way.devices * way.room)
    boxes = jnp.full((way.devices * way.room, *values.shape[1:]), fill, values.dtype)
    boxes = boxes.at[slot].set(values, mode="drop")
    return lax.all_to_all(boxes, axis, 0, 0, tiled=True)


def _rounds(way: Route, body, carry):
    """``body(number, carry) -> carry`` for each round."""
    _, carry = lax.while_loop(
        lambda state: state[0] < way.rounds, lambda state: (state[0] + 1, body(*state)), (jnp.uint32(0), carry)
    )
    return carry


def fetch(table: Float[Array, "rows dim"], way: Route, axis: Axis) -> Float[Array, "ids dim"]:
    """The row of each id, wherever it is; zeros for ids that only fill up."""

    def one(number, found):
        wanted = _send(way, number, way.local, table.shape[0], axis)
        boxes = table.at[wanted].get(mode="fill", fill_value=0)
        mine = lax.all_to_all(boxes, axis, 0, 0, tiled=True)
        return jnp.where((way.turn == number)[:, None], mine.at[way.slot].get(mode="clip"), found)

    return _rounds(way, one, jnp.zeros((way.local.size, table.shape[1]), table.dtype))


def update(
    optimizer: optax.GradientTransformation,
    table: Float[Array, "rows dim"],
    state: Any,
    way: Route,
    gradient: Float[Array, "ids dim"],
    axis: Axis,
) -> tuple[Float[Array, "rows dim"], Any]:
    """Runs `optimizer` on the rows of `table`, and of every leaf of `state`, that any device has a gradient of.

    Args:
      optimizer: as for `optimizer.update_rows`.
      table: this device's rows.
      state: of `optimizer`, for these rows.
      way: of the ids.
      gradient: of each id's row; those of one row are added over all devices.
      axis: the mesh axes.
    """
    rows = table.shape[0]

    def one(number, carry):
        table, state = carry
        ids = _send(way, number, way.local, rows, axis)
        parts = _send(way, number, gradient, 0, axis)
        unique, slots = jnp.unique(ids, size=ids.size, fill_value=rows, return_inverse=True)
        total = jnp.zeros_like(parts).at[slots].add(parts)
        old = table.at[unique].get(mode="clip", indices_are_sorted=True)
        return update_rows(optimizer, table, state, Touched(unique, {}), old, total)

    return _rounds(way, one, (table, state))
