"""Reads what XLA made of a program: collectives and the devices among which they run, kernels, bytes that it moves.

The text is that of an optimized module, the program of one device, in which shapes are those of one device. A
computation that is called counts as often as it is called, the body of a loop as often as XLA knows its trips; where
XLA does not know them, as in the rounds of an exchange of rows (`kunlun_jax.training.exchange`), it counts once, which
is right where ids are spread evenly.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

ITEM_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0, "opaque": 0}
"""Bytes of an element where the name of the type does not end in its bits, or not in a whole number of bytes."""
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
MOSAIC = '"mosaic_gpu_v2"'
"""Name by which a compiled Mosaic kernel is called."""
CALLING = ("while", "conditional", "call", "async", "fusion")
"""Kinds of instructions that run the computations that they name, once for what they are called on."""
MOVES_NOTHING = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "while"),
    *("conditional", "call", "partition-id", "replica-id", "async"),
)
"""Kinds that move no bytes of device memory by themselves."""

_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\]")
_INSTRUCTION = re.compile(r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>\(.*?\)|\S+) (?P<opcode>[a-z][\w-]*)\(")
_HEAD = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) .*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_NAMED = re.compile(r"'(\w+)'=(\d+)")
_IOTA = re.compile(r"^\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      name: unique in its computation.
      opcode: such as "fusion".
      shapes: (type, dimensions) of each array of its result.
      operands: names.
      rest: the line after the opcode.
      root: whether it is the result of its computation.
    """

    name: str
    opcode: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    operands: tuple[str, ...]
    rest: str
    root: bool

    @property
    def kind(self) -> str:
        """The opcode, of what runs beside others without "-start", "-update" and "-done"."""
        return re.sub(r"-(start|update|done)$", "", self.opcode)

    @property
    def bytes(self) -> float:
        """Of its result."""
        return sum(map(_bytes, self.shapes))


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of one device, as often as it runs in a step.

    Attributes:
      kind: one of `COLLECTIVES`.
      bytes: of its result on one device; of what goes in, for a reduce-scatter.
      groups: the devices that take part together, by their numbers in the mesh; empty for all.
      times: runs in a step.
    """

    kind: str
    bytes: float
    groups: tuple[tuple[int, ...], ...]
    times: int


@dataclasses.dataclass(frozen=True)
class Module:
    """A program.

    Attributes:
      computations: name -> its instructions.
      entry: name of the one that runs.
    """

    computations: Mapping[str, Sequence[Instruction]]
    entry: str

    @functools.cached_property
    def times(self) -> dict[tuple[str, bool], int]:
        """(computation, whether it is a fusion's) -> how often it runs in a step; reductions are not told."""
        found: dict[tuple[str, bool], int] = {}

        def visit(name: str, fused: bool, times: int) -> None:
            found[name, fused] = found.get((name, fused), 0) + times
            for one in self.computations[name]:
                if one.kind in CALLING and not one.opcode.endswith(("-done", "-update")):
                    trips = _TRIPS.search(one.rest) if one.opcode == "while" else None
                    for called in _called(one):
                        visit(called, fused or one.kind == "fusion", times * (int(trips[1]) if trips else 1))

        visit(self.entry, False, 1)
        return found

    def running(self, *, fused: bool) -> Iterator[tuple[Instruction, str, int]]:
        """(instruction, its computation, runs in a step), those inside of fusions if `fused`."""
        for (name, inside), times in self.times.items():
            if fused or not inside:
                yield from ((one, name, times) for one in self.computations[name])

    def collectives(self) -> list[Collective]:
        """Every collective, in no particular order."""
        found = []
        for one, _, times in self.running(fused=True):
            if one.kind not in COLLECTIVES or one.opcode.endswith("-done"):
                continue
            groups, shapes = replica_groups(one.rest), one.shapes
            if one.opcode.endswith("-start") and len(shapes) > len(one.operands):
                # The result of a start is (what goes in, what comes out, ...).
                shapes = shapes[len(one.operands) : 2 * len(one.operands)]
            size = sum(map(_bytes, shapes))
            if one.kind == "reduce-scatter":
                if not groups:
                    raise ValueError(f"{one.name} does not say among how many devices it scatters")
                size *= len(groups[0])
            found.append(Collective(one.kind, size, groups, times))
        return found

    def mosaic_calls(self) -> int:
        """Calls of Mosaic kernels in a step."""
        running = self.running(fused=False)
        return sum(times for one, _, times in running if one.kind == "custom-call" and MOSAIC in one.rest)

    def moved(self) -> float:
        """Bytes that a step reads and writes in device memory beside Mosaic's kernels and collectives.

        Each instruction reads its operands and writes its result, once. Where a fusion only picks rows of an operand,
        or writes rows of one that it shares with its result, those rows count and not the whole: so a table counts by
        what a batch touches of it.
        """
        total = 0.0
        for one, name, times in self.running(fused=False):
            ours = one.kind == "custom-call" and MOSAIC in one.rest
            if not (ours or one.kind in COLLECTIVES or one.kind in MOVES_NOTHING or one.opcode.endswith("-done")):
                total += times * self._moved_by(one, name)
        return total

    def _moved_by(self, one: Instruction, computation: str) -> float:
        held = {other.name: other for other in self.computations[computation]}
        operands = [held[name].bytes if name in held else 0.0 for name in one.operands]
        if one.kind != "fusion":
            return _touched(one, operands)
        (inside,) = _called(one)
        body = self.computations[inside]
        if any(part.kind in COLLECTIVES for part in body):
            return 0.0
        parts = {part.name: part for part in body}
        users: dict[str, list[Instruction]] = {}
        for part in body:
            for name in part.operands:
                users.setdefault(name, []).append(part)

        def readers(name: str) -> list[Instruction]:
            """Those that use it, looked at through bitcasts."""
            found = []
            for user in users.get(name, []):
                found += readers(user.name) if user.opcode == "bitcast" else [user]
            return found

        # The result of a start is (what goes in, what comes out, ...), and what goes in is counted as read.
        total, written = 0.0, sum(part.bytes for part in body if part.root)
        for part in body:
            if part.opcode in ("scatter", "dynamic-update-slice") and part.bytes and _is_result(part, parts, users):
                rows = parts[part.operands[1 if part.opcode == "dynamic-update-slice" else 2]]
                written += 2 * rows.bytes - part.bytes
        for part in body:
            if part.opcode != "parameter":
                continue
            using = readers(part.name)
            if using and all(_picks(user, part, parts) for user in using):
                total += sum(user.bytes for user in using if user.opcode in ("gather", "dynamic-slice"))
            else:
                total += part.bytes
        return total + max(written, 0.0)


def _touched(one: Instruction, operands: Sequence[float]) -> float:
    """Bytes of an instruction that stands alone, with those of its operands."""
    result = one.bytes
    if one.kind == "custom-call":
        # Beside its result a matrix product returns its workspace.
        result = sum(_bytes(shape) for shape in one.shapes if shape[0] != "s8" or len(one.shapes) == 1)
    if one.opcode in ("gather", "dynamic-slice"):
        return 2 * result + sum(operands[1:])
    if one.opcode in ("scatter", "dynamic-update-slice"):
        return 2 * operands[1 if one.opcode == "dynamic-update-slice" else 2] + sum(operands[1:])
    return result + sum(operands)


def _source(name: str, parts: Mapping[str, Instruction]) -> str:
    """What stands behind bitcasts."""
    while parts[name].opcode == "bitcast":
        name = parts[name].operands[0]
    return name


def _picks(user: Instruction, part: Instruction, parts: Mapping[str, Instruction]) -> bool:
    """Whether `user` takes rows of `part`, or puts some into it, and nothing else."""
    first, *others = (_source(name, parts) for name in user.operands)
    chosen = user.opcode in ("gather", "dynamic-slice", "scatter", "dynamic-update-slice")
    return chosen and first == part.name and part.name not in others


def _is_result(part: Instruction, parts: Mapping[str, Instruction], users: Mapping[str, list[Instruction]]) -> bool:
    """Whether an instruction of a fusion is what the fusion returns, or a part of it."""
    return part.root or any(
        user.root and user.opcode in ("tuple", "bitcast") for user in users.get(part.name, []) if user.name in parts
    )


def read(text: str) -> Module:
    """The module of a text, as ``jax.stages.Compiled.as_text`` gives it.

    Raises:
      ValueError: it has no entry.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.startswith((" ", "\t")):
            found = _INSTRUCTION.match(line)
            if found and current is not None:
                rest = line[found.end() :]
                names, rest = _operands(rest)
                shapes = tuple(_shape(*shape) for shape in _SHAPE.findall(found["shape"]))
                current.append(
                    Instruction(found["name"], found["opcode"], shapes, names, rest, found["root"] is not None)
                )
        elif head := _HEAD.match(line):
            if head["name"] == "HloModule":
                continue
            current = computations.setdefault(head["name"], [])
            entry = head["name"] if head["entry"] else entry
    if not entry:
        raise ValueError("the text has no computation marked ENTRY; it must be that of an optimized HLO module")
    return Module(computations, entry)


def _operands(text: str) -> tuple[tuple[str, ...], str]:
    """Names up to the bracket that closes, and what stands behind it."""
    depth = 1
    for place, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if not depth:
            return tuple(re.findall(r"%([\w.-]+)", text[:place])), text[place + 1 :]
    return (), text


def _called(one: Instruction) -> list[str]:
    """The computations that an instruction names."""
    branches = (name for found in _BRANCHES.findall(one.rest) for name in found.split(","))
    return [*_CALLED.findall(one.rest), *(name.strip().removeprefix("%") for name in branches)]


def _shape(kind: str, dimensions: str) -> tuple[str, tuple[int, ...]]:
    return kind, tuple(int(size.removeprefix("<=")) for size in dimensions.split(",") if size)


def _bytes(shape: tuple[str, tuple[int, ...]]) -> float:
    kind, dimensions = shape
    if kind in ITEM_BYTES:
        return ITEM_BYTES[kind] * math.prod(dimensions)
    bits = re.match(r"[a-z]+(\d+)", kind)
    if bits is None:
        raise ValueError(f"HLO type {kind!r} has no known size; name it in ITEM_BYTES")
    return int(bits[1]) // 8 * math.prod(dimensions)


def replica_groups(text: str) -> tuple[tuple[int, ...], ...]:
    """The groups that an instruction's attributes name; none where all devices take part.

    Raises:
      ValueError: they are written in a way that is not known.
    """
    if mesh := _MESH.search(text):
        return _along(*mesh.groups())
    found = re.search(r"(?:replica_groups|source_target_pairs)=(\{\{.*?\}\}|\{\}|\[\S+)", text)
    if found is None:
        if "replica_groups=" in text:
            raise ValueError(f"cannot read the replica groups of {text[:200]!r}")
        return ()
    if found[1].startswith("{"):
        return tuple(tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", found[1]))
    iota = _IOTA.match(found[1])
    if iota is None:
        raise ValueError(f"cannot read the replica groups {found[1]!r}")
    (count, size), reshaped = (tuple(map(int, part.split(","))) for part in iota.groups()[:2])
    order = tuple(map(int, iota[3].split(","))) if iota[3] else tuple(range(len(reshaped)))
    numbers = np.arange(math.prod(reshaped)).reshape(reshaped).transpose(order).reshape(count, size)
    return tuple(map(tuple, numbers.tolist()))


def _along(mesh: str, axes: str) -> tuple[tuple[int, ...], ...]:
    """The groups along some axes of a mesh, as in ``mesh['data'=2,'fsdp'=4] {'fsdp'}``."""
    sizes = {name: int(size) for name, size in _NAMED.findall(mesh)}
    names = re.findall(r"'(\w+)'", axes)
    plain = ",".join(f"'{name}'={size}" for name, size in sizes.items()) == mesh.replace(" ", "")
    if not plain or axes.replace(" ", "") != ",".join(f"'{name}'" for name in names) or not set(names) <= set(sizes):
        raise ValueError(f"cannot read the replica groups mesh[{mesh}] {{{axes}}}")
    others = [name for name in sizes if name not in names]
    order = [list(sizes).index(name) for name in (*others, *names)]
    numbers = np.arange(math.prod(sizes.values())).reshape(*sizes.values()).transpose(order)
    return tuple(map(tuple, numbers.reshape(-1, math.prod(sizes[name] for name in names)).tolist()))
