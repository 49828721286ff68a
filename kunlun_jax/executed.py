"""Executed work: FLOPs of the matrix products that a program runs, each loop by the trips that the data makes it do.

Useful FLOPs (`kunlun_jax.flops`) are of valid events alone. A program does more: rows of the capacity that hold no
event, tiles that reach past a history or out of a window, and what the backward pass computes again. Here all of it is
counted in the program as it is traced, dead code left out: two FLOPs per multiply and add, and no elementwise work.
XLA's own count takes a loop's body once. The trips of a loop over tiles follow from the offsets of the batch, which are
integers: what depends on them alone is evaluated, everything else stays shapes. XLA may still do less than is traced.

A fused GPU kernel is opaque here and refused: `NotCounted`.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

CALLS = {"jit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr", "remat2": "jaxpr"}
CALLS |= {"custom_vjp_call": "call_jaxpr", "checkpoint": "jaxpr", "pjit": "jaxpr"}
"""Primitives that run the program in one of their parameters once, on their own operands."""


OPAQUE = ("pallas", "mosaic", "triton", "core_map", "run_state", "ffi_call", "conv_general", "ragged_dot")
"""Parts of the names of primitives that hide a kernel, or products of a kind that no model here has."""


class NotCounted(ValueError):
    """The program holds something whose work cannot be told from its trace."""


class _Unknown:
    """A value that no trip count may depend on."""


UNKNOWN = _Unknown()


class Program:
    """The matrix products of one traced program.

    Args:
      closed: the program, e.g. ``jax.jit(f).trace(*arguments).jaxpr``.
      known: for each of its flat arguments, whether `flops` will be told it; the offsets of the batch need to be.

    Raises:
      NotCounted: a fused kernel, or a loop whose trips depend on something that is not known.
    """

    def __init__(self, closed: ClosedJaxpr, known: Sequence[bool]):
        self._closed, self._known = closed, tuple(known)
        self._once, self._each = 0, ()
        self._trips = jax.jit(self._loops)
        shapes: list[Any] = [v.aval for v, told in zip(closed.jaxpr.invars, known, strict=True) if told]
        jax.eval_shape(self._loops, [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes])

    def _loops(self, told: list[Any]) -> list[Any]:
        """Trips of each loop with products in it; beside them it notes the FLOPs of one trip, and those outside."""
        values = iter(told)
        walk = _Walk()
        arguments = [next(values) if known else UNKNOWN for known in self._known]
        walk.run(self._closed.jaxpr, self._closed.consts, arguments, [True] * len(self._closed.jaxpr.outvars))
        self._once, self._each = walk.once, tuple(flops for flops, _ in walk.loops)
        return [jnp.asarray(trips, jnp.int32) for _, trips in walk.loops]

    def flops(self, told: Sequence[Any]) -> int:
        """FLOPs of all products for these values of the known arguments, in their order."""
        if not self._each:
            return self._once  # and nothing to compile
        trips = jax.device_get(self._trips(list(told)))
        return self._once + sum(each * int(number) for each, number in zip(self._each, trips, strict=True))


class _Walk:
    """Goes through a program once: FLOPs outside of loops, and (FLOPs of a trip, trips) of each loop."""

    def __init__(self):
        self.once = 0
        self.loops: list[tuple[int, Any]] = []

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
        elif name in CALLS:
            inner = params[CALLS[name]]
            jaxpr, consts = (inner.jaxpr, inner.consts) if isinstance(inner, ClosedJaxpr) else (inner, ())
            return self.run(jaxpr, consts, operands, live)
        elif name == "scan":
            self.once += params["length"] * _static(params["jaxpr"], name)
        elif name == "while":
            self.loop(equation, operands)
        elif name == "cond":
            self.once += max(_static(branch, name) for branch in params["branches"])
        elif any(word in name for word in OPAQUE) or any(_products_in(inner) for inner in params.values()):
            raise NotCounted(f"the program calls {name}, whose work its trace does not tell")
        if any(operand is UNKNOWN for operand in operands):
            return [UNKNOWN] * len(equation.outvars)
        results = equation.primitive.bind(*operands, **params)
        return list(results) if equation.primitive.multiple_results else [results]

    def loop(self, equation: JaxprEqn, operands: list[Any]) -> None:
        """Notes a loop with products, which must count from one number to another, as `jax.lax.fori_loop` does."""
        params = equation.params
        each = _static(params["body_jaxpr"], "while")
        if not each:
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


def _product(equation: JaxprEqn) -> int:
    """FLOPs of a dot_general: two for each contracted pair of each result."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, result = _shape(equation.invars[0]), _shape(equation.outvars[0])
    return 2 * math.prod(result) * math.prod(left[axis] for axis in contracted)


def _shape(atom: Any) -> tuple[int, ...]:
    return atom.aval.shape


def _static(closed: ClosedJaxpr, where: str) -> int:
    """FLOPs of a program in which no loop depends on data."""
    walk = _Walk()
    walk.run(closed.jaxpr, closed.consts, [UNKNOWN] * len(closed.jaxpr.invars), [True] * len(closed.jaxpr.outvars))
    if walk.loops:
        raise NotCounted(f"a loop is inside a {where}")
    return walk.once


def _products_in(parameter: Any) -> bool:
    """Whether a parameter of a primitive is a program with products, as what a scatter adds by is not."""
    if isinstance(parameter, Jaxpr):
        parameter = ClosedJaxpr(parameter, ())
    return isinstance(parameter, ClosedJaxpr) and _static(parameter, "primitive") > 0


def _adds_one(body: Jaxpr, consts: int, counter: int, bound: int) -> bool:
    """Whether the body of a loop adds one to a carried value and keeps another."""
    start, end = body.invars[consts + counter], body.invars[consts + bound]
    steps = [equation for equation in body.eqns if equation.outvars[0] is body.outvars[counter]]
    added = [atom for equation in steps if equation.primitive.name == "add" for atom in equation.invars]
    ones = [atom for atom in added if isinstance(atom, Literal) and atom.val == 1]
    return body.outvars[bound] is end and len(ones) == 1 and start in [a for a in added if not isinstance(a, Literal)]
