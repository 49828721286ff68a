"""Executed work: FLOPs of the matrix products that a program runs and the bytes that it moves, each loop by the trips
that the data makes it do.

Useful FLOPs (`kunlun_jax.flops`) are of valid events alone. A program does more: rows of the capacity that hold no
event, tiles that reach past a history or out of a window, and what the backward pass computes again. Here all of it is
counted in the program as it is traced, dead code left out: two FLOPs per multiply and add, and no elementwise work.
XLA's own count takes a loop's body once. The trips of a loop over tiles follow from the offsets of the batch, which are
integers: what depends on them alone is evaluated, everything else stays shapes. XLA may still do less than is traced.

Bytes are those of operands and results of products, gathers, scatters and slices at a place that is computed, as if
each of these read from memory and wrote to it: a product all three of its arrays; a gather or slice its result twice,
and its indices; a scatter or update its rows and their places, the places once more where it adds to what is there, and
its indices. So a large table counts by the rows that are touched, where XLA's ``cost_analysis`` takes the whole of it,
in and out. Not counted are elementwise work, sums, sorts and copies, as if XLA fused them with the products beside
them, and loops without products. The number is a bound on neither side: less is moved where XLA fuses a gather into its
product or a tile stays in a cache, more where it writes what lies between two elementwise operations.

A fused GPU kernel is opaque here and refused: `NotCounted`. Of a step on a mesh, `on_each_device` gives the program of
a device, which is counted for the share of each; what devices send one another is not among the bytes.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

CALLS = {"jit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr", "remat2": "jaxpr"}
CALLS |= {"custom_vjp_call": "call_jaxpr", "checkpoint": "jaxpr", "pjit": "jaxpr"}
"""Primitives that run the program in one of their parameters once, on their own operands."""


COLLECTIVES = ("axis_name", "axes")
"""Parameters that name mesh axes: results of such a primitive depend on other devices, or on which one it is."""

OPAQUE = ("shard_map", "pallas", "mosaic", "triton", "core_map", "run_state", "ffi_call", "conv_general", "ragged_dot")
"""Parts of the names of primitives that hide a kernel, another mesh, or products that no model here has."""


@dataclasses.dataclass(frozen=True, order=True)
class Work:
    """What a program does: FLOPs of its products, and bytes that it moves."""

    flops: float
    bytes: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> "Work":
        return Work(times * self.flops, times * self.bytes)


NOTHING = Work(0, 0)


class NotCounted(ValueError):
    """The program holds something whose work cannot be told from its trace."""


MOVES: dict[str, tuple[int | None, int]] = {
    "gather": (None, 2),
    "dynamic_slice": (None, 2),
    "dynamic_update_slice": (1, 2),
    "scatter": (2, 2),
    **dict.fromkeys(("scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max"), (2, 3)),
}
"""Primitives that read or write rows of a larger array at places that are computed -> which operand these rows are (or
None: the result), and how often they are read or written: where they lie, where they go, what they are added to."""


class _Unknown:
    """A value that no trip count may depend on."""


UNKNOWN = _Unknown()


class Program:
    """The work of one traced program.

    Args:
      closed: the program, e.g. ``jax.jit(f).trace(*arguments).jaxpr``.
      known: for each of its flat arguments, whether `work` will be told it; the offsets of the batch need to be.

    Raises:
      NotCounted: a fused kernel, or a loop whose trips depend on something that is not known.
    """

    def __init__(self, closed: ClosedJaxpr, known: Sequence[bool]):
        self._closed, self._known = closed, tuple(known)
        self._once, self._each = NOTHING, ()
        self._trips = jax.jit(self._loops)
        shapes: list[Any] = [v.aval for v, told in zip(closed.jaxpr.invars, known, strict=True) if told]
        jax.eval_shape(self._loops, [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes])

    def _loops(self, told: list[Any]) -> list[Any]:
        """Trips of each loop with products in it; beside them it notes the work of one trip, and that outside."""
        values = iter(told)
        walk = _Walk()
        arguments = [next(values) if known else UNKNOWN for known in self._known]
        walk.run(self._closed.jaxpr, self._closed.consts, arguments, [True] * len(self._closed.jaxpr.outvars))
        self._once, self._each = walk.once, tuple(work for work, _ in walk.loops)
        return [jnp.asarray(trips, jnp.int32) for _, trips in walk.loops]

    def work(self, told: Sequence[Any]) -> Work:
        """The work for these values of the known arguments, in their order."""
        if not self._each:
            return self._once  # and nothing to compile
        trips = jax.device_get(self._trips(list(told)))
        return sum((each * int(number) for each, number in zip(self._each, trips, strict=True)), self._once)


class _Walk:
    """Goes through a program once: work outside of loops, and (work of a trip, trips) of each loop."""

    def __init__(self):
        self.once = NOTHING
        self.loops: list[tuple[Work, Any]] = []

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any], live: Sequence[bool]) -> list[Any]:
        """Values of the outputs where they are known; `live` says which of them anything reads."""
        values = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else values[atom]

        for equation, used in _living(jaxpr, live):
            results = self.equation(equation, [read(atom) for atom in equation.invars], used)
            values |= dict(zip(equation.outvars, results, strict=True))
        return [read(atom) if used else UNKNOWN for atom, used in zip(jaxpr.outvars, live, strict=True)]

    def equation(self, equation: JaxprEqn, operands: list[Any], live: list[bool]) -> list[Any]:
        """The results of one equation, UNKNOWN where an operand is."""
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            self.once += _product(equation)
        elif name in MOVES:
            self.once += _move(equation)
        elif name in CALLS:
            inner = params[CALLS[name]]
            jaxpr, consts = (inner.jaxpr, inner.consts) if isinstance(inner, ClosedJaxpr) else (inner, ())
            return self.run(jaxpr, consts, operands, live)
        elif name == "scan":
            self.once += _static(params["jaxpr"], name) * params["length"]
        elif name == "while":
            self.loop(equation, operands)
        elif name == "cond":
            self.once += max(_static(branch, name) for branch in params["branches"])
        elif any(word in name for word in OPAQUE) or any(_products_in(inner) for inner in params.values()):
            raise NotCounted(f"the program calls {name}, whose work its trace does not tell")
        if any(operand is UNKNOWN for operand in operands) or _names_axes(params):
            return [UNKNOWN] * len(equation.outvars)
        results = equation.primitive.bind(*operands, **params)
        return list(results) if equation.primitive.multiple_results else [results]

    def loop(self, equation: JaxprEqn, operands: list[Any]) -> None:
        """Notes a loop with products, which must count from one number to another, as `jax.lax.fori_loop` does."""
        params = equation.params
        each = _static(params["body_jaxpr"], "while")
        if not each.flops:
            return
        test, body = params["cond_jaxpr"].jaxpr, params["body_jaxpr"].jaxpr
        carried = operands[params["cond_nconsts"] + params["body_nconsts"] :]
        counts = len(test.eqns) == 1 and test.eqns[0].primitive.name == "lt" and not params["cond_nconsts"]
        ends = [test.invars.index(atom) for atom in test.eqns[0].invars if atom in test.invars] if counts else []
        if len(ends) != 2 or not _adds_one(body, params["body_nconsts"], *ends):
            raise NotCounted("the program has a while loop that is no count from one number up to another")
        first, last = (carried[place] for place in ends)
        if first is UNKNOWN or last is UNKNOWN:
            raise NotCounted("the trips of a loop depend on more than the offsets of the batch")
        self.loops.append((each, jnp.maximum(last - first, 0)))


class OneDevice(NamedTuple):
    """What a program on a mesh has each device do.

    Attributes:
      closed: the program of a device.
      arguments: of the whole program which one each argument of `closed` is a part of; None for a constant.
      devices: how many run it.
    """

    closed: ClosedJaxpr
    arguments: tuple[int | None, ...]
    devices: int


def on_each_device(closed: ClosedJaxpr) -> OneDevice:
    """The program of a device of one that is a single `jax.shard_map`; any other is its own, for one device."""
    spread = [equation for equation in closed.jaxpr.eqns if equation.primitive.name == "shard_map"]
    if len(closed.jaxpr.eqns) != 1 or not spread:
        return OneDevice(closed, tuple(range(len(closed.jaxpr.invars))), 1)
    numbers = {atom: number for number, atom in enumerate(closed.jaxpr.invars)}
    operands = [None if isinstance(atom, Literal) else numbers.get(atom) for atom in spread[0].invars]
    params = spread[0].params
    return OneDevice(ClosedJaxpr(params["jaxpr"], ()), tuple(operands), params["mesh"].size)


def _names_axes(params: Mapping[str, Any]) -> bool:
    """Whether a primitive has to do with axes of a mesh; ``axes`` of a sum are numbers."""
    named = [params[name] for name in COLLECTIVES if name in params]
    return any(
        isinstance(axis, str) for axes in named for axis in (axes if isinstance(axes, tuple | list) else (axes,))
    )


def _living(jaxpr: Jaxpr, live: Sequence[bool]) -> list[tuple[JaxprEqn, list[bool]]]:
    """The equations that an output in use depends on, in order, and which of their results are read."""
    needed = {atom for atom, used in zip(jaxpr.outvars, live, strict=True) if used and not isinstance(atom, Literal)}
    found = []
    for equation in reversed(jaxpr.eqns):
        used = [result in needed for result in equation.outvars]
        if any(used):
            found.append((equation, used))
            needed |= {atom for atom in equation.invars if not isinstance(atom, Literal)}
    return found[::-1]


def _product(equation: JaxprEqn) -> Work:
    """Of a dot_general: two FLOPs for each contracted pair of each result; its operands and its result."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, result = _shape(equation.invars[0]), _shape(equation.outvars[0])
    flops = 2 * math.prod(result) * math.prod(left[axis] for axis in contracted)
    return Work(flops, sum(map(size_in_bytes, (*equation.invars, *equation.outvars))))


def _move(equation: JaxprEqn) -> Work:
    """Of one of `MOVES`: its rows as often as they are read or written, and its indices."""
    place, times = MOVES[equation.primitive.name]
    rows = equation.outvars[0] if place is None else equation.invars[place]
    indices = [atom for number, atom in enumerate(equation.invars) if number not in (0, place)]
    return Work(0, times * size_in_bytes(rows) + sum(map(size_in_bytes, indices)))


def _shape(atom: Any) -> tuple[int, ...]:
    return atom.aval.shape


def size_in_bytes(array: Any) -> int:
    """Of an array, of its shape and dtype, or of an operand of an equation."""
    aval = getattr(array, "aval", array)
    return math.prod(aval.shape) * aval.dtype.itemsize


def _static(closed: ClosedJaxpr, where: str) -> Work:
    """Work of a program in which no loop depends on data."""
    walk = _Walk()
    walk.run(closed.jaxpr, closed.consts, [UNKNOWN] * len(closed.jaxpr.invars), [True] * len(closed.jaxpr.outvars))
    if walk.loops:
        raise NotCounted(f"a loop is inside a {where}")
    return walk.once


def _products_in(parameter: Any) -> bool:
    """Whether a parameter of a primitive is a program with products, as what a scatter adds by is not."""
    if isinstance(parameter, Jaxpr):
        parameter = ClosedJaxpr(parameter, ())
    return isinstance(parameter, ClosedJaxpr) and _static(parameter, "primitive").flops > 0


def _adds_one(body: Jaxpr, consts: int, counter: int, bound: int) -> bool:
    """Whether the body of a loop adds one to a carried value and keeps another."""
    start, end = body.invars[consts + counter], body.invars[consts + bound]
    steps = [equation for equation in body.eqns if equation.outvars[0] is body.outvars[counter]]
    added = [atom for equation in steps if equation.primitive.name == "add" for atom in equation.invars]
    ones = [atom for atom in added if isinstance(atom, Literal) and atom.val == 1]
    return body.outvars[bound] is end and len(ones) == 1 and start in [a for a in added if not isinstance(a, Literal)]
